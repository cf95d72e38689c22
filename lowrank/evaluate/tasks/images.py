"""`images:FOLDER`: accuracy on pictures in folders named by their labels, or on a zip of such folders."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np

from lowrank.artifacts.outside import check_zip
from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import Feed, Pooling
from lowrank.core.distance import Array
from lowrank.errors import TaskError, first_line
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.base import Score, Task
from lowrank.evaluate.tasks.classify import Classes, classes_of
from lowrank.evaluate.tasks.inputs import run
from lowrank.evaluate.tasks.model_files import pool
from lowrank.evaluate.tasks.pictures import Preprocessing

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
ROWS = 32
MOST_BYTES = 1 << 28
"""Of one picture's file."""


@dataclass(frozen=True)
class Images:
    """Accuracy on labelled pictures; they are read anew for each model, since all together may not fit into memory."""

    name: str
    place: Path
    files: tuple[str, ...]
    preprocess: Preprocessing
    classes: Classes
    pooling: Pooling | None
    output: str
    """The name of the output that is read."""
    higher_is_better: bool = True

    @property
    def metric(self) -> str:
        """Accuracy, and by what."""
        return self.classes.metric

    def score(self, model: Runs) -> Score:
        """A hit or a miss for each picture."""
        rows: list[Array] = []
        with _opened(self.place) as content:
            for start in range(0, len(self.files), ROWS):
                feed = self._feed(content, self.files[start : start + ROWS])
                rows.append(pool(run(model, feed, self.output), self.pooling))
        return Score(self.classes.hits(np.concatenate(rows)))

    def _feed(self, content: Callable[[str], bytes], files: Sequence[str]) -> Feed:
        pictures: list[Array] = []
        for file in files:
            try:
                pictures.append(self.preprocess(content(file)))
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                raise TaskError(
                    f"--task {self.name}: {file} cannot be read as a picture ({first_line(error)}); remove it"
                ) from None
        return {self.preprocess.input: np.stack(pictures)}


@contextmanager
def _opened(place: Path) -> Iterator[Callable[[str], bytes]]:
    """A function from a picture's name to its bytes."""
    with nullcontext() if place.is_dir() else zipfile.ZipFile(place) as archive:

        def read(name: str) -> bytes:
            size = archive.getinfo(name).file_size if archive else (place / name).stat().st_size
            if size > MOST_BYTES:
                raise ValueError(f"it has {size:,} bytes")
            return archive.read(name) if archive else (place / name).read_bytes()

        yield read


def _listed(spec: str, place: Path) -> list[str]:
    """Names of all pictures, in order."""
    try:
        if place.is_dir():
            names = [p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()]
        else:
            check_zip(place)
            with zipfile.ZipFile(place) as archive:
                names = archive.namelist()
    except FileNotFoundError:
        raise TaskError(f"--task {spec}: there is no {place}; give a folder with a folder for each label") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TaskError(f"--task {spec}: {place} is neither a folder nor a zip to read ({first_line(error)})") from None
    return sorted(n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES and "/" in n.strip("/"))


def read_images(spec: str, rest: str, dense: Backend) -> Task:
    """From `FOLDER/label/picture.jpg`, at any depth, in a folder or a zip.

    Raises:
        TaskError: if there are no pictures, or the model reads none.
    """
    if find_spec("PIL") is None:
        raise TaskError(f"--task {spec}: pictures are read with Pillow; pip install 'lowrank[tasks]'")
    place = Path(rest).expanduser()
    files = _listed(spec, place)
    if not files:
        raise TaskError(f"--task {spec}: {place} holds no picture in a folder named by its label: label/picture.jpg")
    preprocess = Preprocessing.of(spec, dense)
    labels = [PurePosixPath(name).parent.name for name in files]
    signature, classes = signature_of(dense), classes_of(spec, dense, labels)
    return Images(spec, place, tuple(files), preprocess, classes, signature.pooling, signature.output)
