"""What a torch file asks Python to import, read off its pickles without following them."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

LARGEST_PICKLE = 64 << 20
OLD_PICKLES = 4


def pickled_names(path: Path) -> list[str]:
    """What a torch file asks Python to import, with the module before the name; what it does then is not looked at."""
    names: list[str] = []
    texts: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                member = next(i for i in archive.infolist() if i.filename.endswith("data.pkl"))
                content = archive.read(member) if member.file_size <= LARGEST_PICKLE else b""
        else:
            with path.open("rb") as stream:
                content = stream.read(LARGEST_PICKLE)
        rest = io.BytesIO(content)
        # Older files are a few pickles one after the other, and then numbers.
        for _ in range(OLD_PICKLES):
            for code, argument, _ in pickletools.genops(rest):
                if code.name == "GLOBAL":
                    # Python 2's name, which the protocol keeps.
                    names.append(str(argument).replace("__builtin__ ", "builtins ").replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    names.append(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts.append(argument)
    except Exception:
        # Whatever is wrong with it, or only its end: torch's own reader says so.
        pass
    return sorted(set(names))
