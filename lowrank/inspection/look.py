"""Choosing how a path is inspected: by its suffix, and by its first bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lowrank.errors import LowRankError, UnsupportedModel, first_line
from lowrank.inspection.description import ALL, Description, quoted, tidy
from lowrank.inspection.graphs import look_at_onnx, look_at_ort, look_at_runtime_adapter
from lowrank.inspection.records import look_at_json
from lowrank.inspection.samples import look_at_arrays, look_at_text
from lowrank.inspection.tensors import look_at_program, look_at_safetensors, look_at_torch

READ = (
    "a Hugging Face folder, .safetensors, .pt, .pth, .bin, .ckpt, .pt2, .onnx, .ort, .onnx_adapter, the files and the "
    "folder of a run, an adapter folder, calibration data (.txt, .tsv, .csv, .jsonl, .gz, .npz) and run files (.yaml)"
)
LOOKS: dict[str, Callable[[Path], Description]] = {
    ".safetensors": look_at_safetensors,
    ".pt": look_at_torch,
    ".pth": look_at_torch,
    ".bin": look_at_torch,
    ".ckpt": look_at_torch,
    ".pt2": look_at_program,
    ".onnx": look_at_onnx,
    ".ort": look_at_ort,
    ".onnx_adapter": look_at_runtime_adapter,
    ".json": look_at_json,
    ".npz": look_at_arrays,
    ".txt": look_at_text,
    ".tsv": look_at_text,
    ".csv": look_at_text,
    ".jsonl": look_at_text,
}
SIGNS = (
    (0, b"GGUF", "a GGUF file of llama.cpp", "compress the Hugging Face folder that it was made from"),
    (0, b"\x89HDF", "an HDF5 file, such as Keras writes", "see docs/tensorflow.md"),
    (4, b"TFL3", "a TensorFlow Lite model", "see docs/tensorflow.md"),
    (4, b"ORTM", "an ONNX Runtime model", "give it the suffix .ort"),
    (0, b"\x89PNG", "a PNG image", ""),
    (0, b"\xff\xd8\xff", "a JPEG image", ""),
    (0, b"GIF8", "a GIF image", ""),
    (0, b"%PDF", "a PDF", ""),
    (0, b"\x7fELF", "a program or library for Linux", ""),
    (0, b"MZ", "a program or library for Windows", ""),
    (0, b"PK\x03\x04", "a ZIP archive; torch files and .npz are such, under their own suffixes", ""),
    (0, b"\x1f\x8b", "a gzipped file", "text keeps its suffix before .gz: samples.txt.gz"),
    (0, b"\x80\x02", "a pickle, which runs code when it is read", "save tensors as safetensors"),
    (0, b"\x80\x04", "a pickle, which runs code when it is read", "save tensors as safetensors"),
    (0, b"\x93NUMPY", "one array of numpy", "save inputs by name: numpy.savez(path, input_ids=array)"),
    (0, b"<!DOCTYPE html", "an HTML page", "open it in a browser"),
    (0, b"version https://git-lfs", "a pointer of git-lfs, not the file itself", "git lfs pull"),
)


def inspect(path: Path) -> Description:
    """What a file or folder is.

    Nothing in it is run, and of large files only headers are read where those are enough.

    Raises:
        LowRankError: if there is no such file.

    Example:
        print(inspect(Path("model.onnx")).what)
    """
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        raise UnsupportedModel(f"there is no {path}; give {READ}")
    try:
        description = _look(path)
        return replace(description, facts=tidy(description.facts, ALL))
    except LowRankError as error:
        return Description("damaged", "a file that is not what its name says", facts={"why": str(error)})
    except OSError as error:
        raise UnsupportedModel(f"{path} cannot be read: {error.strerror or first_line(error)}") from None


def _look(path: Path) -> Description:
    if path.is_dir():
        from lowrank.inspection.folders import look_at_folder

        return look_at_folder(path)
    if not path.is_file():
        return Description("unknown", "neither a file nor a folder", next=(f"what is read: {READ}",))
    with path.open("rb") as stream:
        start = stream.read(64)
    if not start:
        return Description("empty", "an empty file", next=("copy it again",))
    sign = next((each for each in SIGNS if start[each[0] :].startswith(each[1])), None)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    pointer = sign is not None and sign[2].startswith("a pointer")
    if suffix in LOOKS and not pointer:
        return LOOKS[suffix](path)
    if suffix in (".yaml", ".yml"):
        return _run_file(path)
    if sign is not None:
        return Description(
            "unknown",
            sign[2],
            facts={"bytes": path.stat().st_size},
            next=tuple(part for part in (sign[3], f"what is read: {READ}") if part),
        )
    looks = "text" if _is_text(start) else "bytes of no kind that is known here"
    return Description(
        "unknown",
        looks,
        facts={"bytes": path.stat().st_size, "begins": tidy(repr(start[:32]))},
        next=(f"what is read: {READ}",),
    )


def _is_text(start: bytes) -> bool:
    return b"\x00" not in start and start.decode("utf-8", "ignore").isprintable()


def _run_file(path: Path) -> Description:
    from lowrank.flat_yaml import Truth, read_flat

    values = {name: each for name, (_, each) in read_flat(path).items()}
    facts = {"options": tidy({n: v.value if isinstance(v, Truth) else v for n, v in values.items()}, 100)}
    return Description(
        "run-file",
        f"a run file with {len(values)} options",
        facts=facts,
        next=(f"lowrank COMMAND --config {quoted(path)}",),
    )
