"""The sets that a compressed model is judged on: data like the user's own, and what it may meet beside that."""

from __future__ import annotations

from collections.abc import Iterator

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import Feed
from lowrank.calibrate.changed_sets import changed_sets
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.calibrate.text_sets import text_sets
from lowrank.errors import CalibrationError

RANDOM = "random inputs"
"""The name of the set of a model that comes without data."""


def judging_sets(dense: Backend, calibration: Calibration | None) -> Iterator[JudgingSet]:
    """The report fold of the data, and what a model is judged on beside it, by what it reads; random inputs without
    data.

    A model that reads text is judged on short texts, on passages as long as it is used with, and on technical prose,
    where its tokenizer knows their words; any other on its own samples made darker, noisier, shorter or longer. What
    is left out comes without samples, and with the reason.
    """
    if calibration is None:
        yield JudgingSet(RANDOM, tuple(random_feeds(dense)), "random", RANDOM)
        return
    yield JudgingSet(calibration.own_name, calibration.report, "own", calibration.report_label)
    backend, judged = calibration.backend, False
    if signature_of(backend).reads_tokens and backend.tokenizer is not None:
        try:
            for each in text_sets(backend):
                judged = judged or bool(each.feeds)
                yield each
        except CalibrationError as error:
            yield JudgingSet("built-in text", (), "built-in", left_out=str(error))
    if not judged:
        yield from changed_sets(backend, calibration.report)


def random_feeds(dense: Backend) -> list[Feed]:
    """Some random batches for a model that comes without data."""
    signature = signature_of(dense)
    return [signature.example(4, min(16, signature.max_sequence), seed) for seed in range(4)]
