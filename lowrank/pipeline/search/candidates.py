"""The models behind the points of a sweep: one dense model, pruned, shortened, factored and healed."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.artifacts import hash_json, read_json, write_json
from lowrank.artifacts.files import linked
from lowrank.backends import Backend
from lowrank.backends.inputs import Feed
from lowrank.backends.onnx.save import file_size
from lowrank.edge.graph_file import fit_file, write_again
from lowrank.errors import UnsupportedModel
from lowrank.evaluate.parity import check_parity
from lowrank.healing.training import Training
from lowrank.pipeline.healing import check_samples
from lowrank.pipeline.plans import compressed_model, select
from lowrank.pipeline.run.layout import CHECKPOINT_FILE, MODEL_FOLDER
from lowrank.pipeline.run.write import rounding_feeds
from lowrank.pipeline.search.bench import Bench
from lowrank.pipeline.search.methods import Method
from lowrank.pipeline.session import Session, read_training
from lowrank.results.report import ONNX_FILE

if TYPE_CHECKING:
    from lowrank.evaluate.tasks.base import Score
    from lowrank.healing.checkpoint import Checkpoint
    from lowrank.healing.distill import Samples
    from lowrank.healing.phases import Healing

POINT_FILE = "point.json"
"""Of a point that is made and scored: written last."""
CHUNK = 1 << 22


@dataclass(frozen=True)
class Candidate:
    """A model, and how it is saved."""

    model: Backend
    save: Callable[[Path], None]
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    """What a point says of it beside the measures."""


@dataclass(eq=False)
class CandidateBuilder:
    """Makes each model once, its graphs in all types, and scores them; what is done is kept in a folder."""

    bench: Bench
    folder: Path
    heal: Training | None
    distil: Training | None
    resume: bool
    saving: bool
    """Whether models are saved beside their graphs."""
    _factored: tuple[float, Backend] | None = None

    @cached_property
    def session(self) -> Session:
        """The bench's, which shows no progress."""
        return self.bench.session.on_trial

    def path(self, kind: Method) -> Path:
        """The graph of a point."""
        return self.folder / kind.name / ONNX_FILE

    def known(self, kind: Method) -> dict[str, Any] | None:
        """What is known of a point that was made."""
        path = self.folder / kind.name / POINT_FILE
        return read_json(path, "point") if path.is_file() else None

    def make(self, family: Sequence[Method]) -> None:
        """The points of one model, unless they are there.

        Raises:
            LowRankError: if it cannot be made, with the reason.
        """
        whole, *_ = family
        missing = [kind for kind in family if self.known(kind) is None]
        if not missing:
            return
        candidate = self._made(whole)
        place = self.path(whole).parent
        place.mkdir(exist_ok=True)
        if self.saving:
            shutil.rmtree(place / MODEL_FOLDER, ignore_errors=True)
            (place / MODEL_FOLDER).mkdir()
            candidate.save(place / MODEL_FOLDER)
        candidate.model.write_onnx(self.path(whole))
        check_parity(candidate.model, self.path(whole))
        feeds = rounding_feeds(self.session.calibration)
        for kind in missing:
            if kind is not whole:
                self._round(kind, whole, candidate, feeds)
            self._keep(kind, candidate)

    def _round(self, kind: Method, whole: Method, candidate: Candidate, feeds: Sequence[Feed]) -> None:
        place = self.path(kind).parent
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        write_again(candidate.model, self.path(whole), self.path(kind), kind.target)
        fit_file(self.path(kind), kind.target, self.bench.signature, feeds)
        if self.saving:
            shutil.copytree(self.path(whole).parent / MODEL_FOLDER, place / MODEL_FOLDER, copy_function=linked)

    def _keep(self, kind: Method, candidate: Candidate) -> None:
        """Score a graph, and remember what it came to."""
        path = self.path(kind)
        score = self.dense_score if kind == Method("dense") else self.bench.score(path)
        compared = self.bench.compared(self.dense_score, score)
        facts = {
            "params": candidate.model.params,
            "zeros": None,
            "minutes": None,
            "note": None,
            **candidate.facts,
            "bytes": file_size(path),
            "gzip_bytes": compressed_size(path) if kind.method in ("dense", "pruned") else None,
            "quality": compared.compressed,
            "drop": compared.drop,
            "low": compared.low,
            "high": compared.high,
        }
        write_json(path.parent / POINT_FILE, "point", facts)

    @cached_property
    def dense_score(self) -> Score:
        """Of the dense model's graph, which is made first."""
        return self.bench.score(self.path(Method("dense")))

    def _made(self, kind: Method) -> Candidate:
        if kind.method == "dense":
            return Candidate(self.session.dense, self.session.dense.save)
        if kind.method == "student":
            return self._student()
        assert kind.keep is not None
        if kind.method == "pruned":
            from lowrank.baselines.pruning import pruned

            names = [record.weight.name for record in self.session.analysis.weights]
            model, zeros = pruned(self.session.dense, names, kind.keep)
            return Candidate(model, model.save, {"zeros": zeros})
        if kind.method == "lowrank":
            model = self._small(kind.keep)
            return Candidate(model, model.save)
        return self._healed(kind)

    def _small(self, keep: float) -> Backend:
        """What `compress` makes of the dense model for a keep ratio; the last one is remembered."""
        if self._factored is not None and self._factored[0] == keep:
            return self._factored[1]
        self._factored = None
        small = compressed_model(self.session, select(self.session.analysis, keep))
        self._factored = (keep, small)
        return small

    def _healed(self, kind: Method) -> Candidate:
        from lowrank.healing.preparation import prepare

        assert kind.keep is not None and self.heal is not None
        dense, samples = self._data()
        small, training = self._small(kind.keep), self.heal
        self._factored = None
        healing = prepare(dense, small, samples, training, self._checkpoint(kind, training))
        return Candidate(small, small.save, self._trained(healing, training))

    def _student(self) -> Candidate:
        from lowrank.baselines.student import distillation, half_of, save_student

        student, training = half_of(self.session.dense), self.distil
        dense, samples = self._data()
        assert training is not None
        healing = distillation(dense, student, samples, training, self._checkpoint(Method("student"), training))
        facts = self._trained(healing, training)
        return Candidate(student, lambda folder: save_student(student, folder), facts)

    def _trained(self, healing: Healing, training: Training) -> dict[str, Any]:
        for _ in healing.run():
            pass
        if healing.checkpoint.path is not None:
            healing.checkpoint.path.unlink(missing_ok=True)
        healed = healing.healed()
        note = None if healed.kept else "training found nothing better than what it began with"
        return {"minutes": training.minutes, "note": "; ".join([*healed.problems, *([note] if note else [])]) or None}

    def _data(self) -> tuple[Backend, Samples]:
        """The dense model that is imitated, and the samples for it.

        Raises:
            UnsupportedModel: if there are none.
        """
        from lowrank.healing.distill import Samples

        calibration, settings = self.session.calibration, self.session.settings
        if calibration is None:
            raise UnsupportedModel("there is no data to learn from; give --calib FILE")
        check_samples(calibration)
        return calibration.backend, Samples(read_training(calibration, settings), calibration.heldout)

    def _checkpoint(self, kind: Method, training: Training) -> Checkpoint:
        from lowrank.healing.checkpoint import Checkpoint

        path = self.folder / kind.name / CHECKPOINT_FILE
        path.parent.mkdir(exist_ok=True)
        key = hash_json([kind.name, training.minutes, training.steps, training.seed])
        return Checkpoint(path, key, self.resume and path.is_file())


def compressed_size(path: Path) -> int:
    """Bytes of a graph with the numbers beside it, as gzip makes them."""
    packer, size = zlib.compressobj(wbits=31), 0
    for part in (path, path.with_name(f"{path.name}.data")):
        if part.exists():
            with part.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    size += len(packer.compress(chunk))
    return size + len(packer.flush())


def copy_point(place: Path, target: Path) -> None:
    """Put what is for a user of a point's folder into another folder."""
    shutil.copytree(place, target, copy_function=linked, ignore=shutil.ignore_patterns(POINT_FILE, CHECKPOINT_FILE))
