"""What torch would run of a `torch.export` archive, checked before torch reads it.

Apart from pickles, an archive can reach Python in two ways: its shape expressions go to sympy, which evaluates them,
and
the names of its operators are looked up in torch by attribute, so that `torch.os.system` is one. Both are compared with
what an exporter writes.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lowrank.artifacts import parse_json
from lowrank.artifacts.outside import check_zip, most_bytes
from lowrank.errors import UnsupportedModel, first_line

EXPRESSION_WORDS = frozenset(
    [
        *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Mod", "Max", "Min", "Abs"),
        *("FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "PythonMod", "Where", "ToFloat", "TruncToInt"),
        *("IntTrueDiv", "FloatTrueDiv", "RoundToInt", "FloorToInt", "CeilToInt"),
        *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Piecewise", "True", "False", "true", "false"),
        *("StrictLessThan", "StrictGreaterThan", "LessThan", "GreaterThan", "Equality", "Unequality", "Identity"),
        *("positive", "negative", "nonnegative", "nonzero", "zero", "integer", "real", "finite", "infinite"),
        *("oo", "int_oo", "ceiling", "floor"),
    ]
)
EXPRESSION = re.compile(r"(?:[A-Za-z0-9_\s(),'\"=+\-*/<>|&~]|\d\.\d)*")
COMPILED = (".so", ".dll", ".dylib", ".pyd", ".cubin", ".py")
SYMBOL = re.compile(r"[suzft]\d{1,6}|\d{1,18}")
OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims|prim|higher_order|torchvision|quantized_decomposed)\.\w+(?:\.\w+)?"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|abs)"
    r"|math\.\w+|torch\.sym_\w+|torch\._sym_sqrt|_?\w+"
)


def check_archive(path: Path) -> None:
    """Check that the archive holds only arithmetic and tensor operators.

    Raises:
        UnsupportedModel: if it is no whole archive, or holds anything else.
    """
    try:
        check_zip(path)
        # As torch itself reads it: two readers may see different files in one archive.
        archive = torch._C.PyTorchFileReader(str(path))
        names = archive.get_all_records()
        check_records(archive, most_bytes(path))
        if not any(name.endswith("models/model.json") for name in names):
            raise ValueError("it holds no exported model")
        contents = [parse_json(archive.get_record(name)) for name in names if name.endswith(".json")]
        for name in names:
            content = archive.get_record(name) if name.endswith((".pt", "weights", "constants")) else b""
            if zipfile.is_zipfile(io.BytesIO(content)):
                check_records(torch._C.PyTorchFileReader(io.BytesIO(content)), most_bytes(path))
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"{path} is not a whole torch.export archive ({first_line(error)}); save it again with torch.export.save"
        ) from None
    compiled = [name for name in names if "aotinductor" in name.lower() or name.endswith(COMPILED)]
    if compiled:
        raise UnsupportedModel(
            f"{path} holds compiled code ({compiled[0][:60]!r}), which torch would load and run; save the program "
            "alone with torch.export.save"
        )
    for content in contents:
        for key, text in _strings(content):
            if key in ("expr_str", "as_expr") and not is_arithmetic(text):
                raise _refused(path, f"the shape expression {text[:60]!r} is more than arithmetic")
            if key == "target" and not OPERATOR.fullmatch(text):
                raise _refused(path, f"{text[:60]!r} is not a tensor operator")


def check_records(archive: Any, most: int) -> None:
    """Check that the records of an open torch archive are not too large together.

    Raises:
        ValueError: if they are.
    """
    claimed = sum(archive.get_record_size(name) for name in archive.get_all_records())
    if claimed > most:
        raise ValueError(f"its records would take {claimed:,} bytes, too many for its size")


def is_arithmetic(expression: str) -> bool:
    """Whether an expression is made of numbers, symbols and known functions alone."""
    words = re.findall(r"\w+", expression)
    known = all(word in EXPRESSION_WORDS or SYMBOL.fullmatch(word) for word in words)
    # A power tower of small numbers would keep sympy busy for ever.
    return known and "**" not in expression and EXPRESSION.fullmatch(expression) is not None


def _refused(path: Path, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path}: {what} and could run as code; pass --unsafe-pickle if you trust where the file comes from"
    )


def _strings(content: Any) -> Iterator[tuple[str, str]]:
    """Every string in a JSON value with the key that it stands under."""
    waiting = [("", content)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
