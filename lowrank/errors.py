"""What can go wrong, by cause. Every message says what and where, why, and what to try."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class LowRankError(Exception):
    """Something could not be done, and the message says what to try. The command line exits with 1."""


class UnsupportedModel(LowRankError):
    """The model file is of a kind, or in a state, that cannot be read."""


class NonFiniteWeight(LowRankError):
    """A weight holds NaN or infinity, so no spectrum of it means anything."""


class InfeasibleBudget(LowRankError, ValueError):
    """The budget is not a budget, or no choice of ranks can meet it."""


class PlanMismatch(LowRankError):
    """A plan and an analysis, or an analysis and a model, do not belong together."""


class PatternError(LowRankError, ValueError):
    """A name or pattern that selects weights selects nothing."""


class CalibrationError(LowRankError):
    """The calibration data cannot be read, or the model cannot be run on it."""


class VocabularyError(LowRankError, ValueError):
    """What should stay of a vocabulary is not in it, or cannot be told from what is given."""


class ArtifactError(LowRankError):
    """A file of a run cannot be read or written."""


class ExportError(LowRankError):
    """The model could not be written as ONNX, or what was written does not agree with it."""


class HealingError(LowRankError):
    """The compressed model cannot be trained, or not on this data."""


class TimingError(LowRankError):
    """A table of timings is for another model, or none."""


class TaskError(LowRankError):
    """A task cannot be read, or is not one for this model."""


class ClusterError(LowRankError):
    """Other machines cannot be reached, or cannot do the work."""


class ResourceError(LowRankError):
    """There is not enough memory or disk, known before the work begins."""


class MissingExtra(LowRankError):
    """What was asked for needs a package that is not installed; the message has the line that installs it."""


class DecompositionError(LowRankError):
    """No solver could decompose a matrix."""


@contextmanager
def misfit(claim: str, remedy: str = "compress the original again") -> Generator[None]:
    """Any error that wrong content of a file leads to inside the block becomes one with a message.

    Args:
        claim: what is wrong then; the error follows in brackets.
        remedy: what to try.

    Raises:
        ArtifactError: in the place of those errors; errors of this package pass.
    """
    try:
        yield
    except LowRankError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError, IndexError, RuntimeError) as error:
        raise ArtifactError(f"{claim} ({type(error).__name__}: {first_line(error)}); {remedy}") from None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for quoting in one of ours; with the next one where it announces that.

    Example:
        >>> first_line(ValueError("These do not fit:\\n  a and b\\n  c and d"))
        'These do not fit: a and b'
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    return text if len(text) <= 160 else text[:157] + "..."
