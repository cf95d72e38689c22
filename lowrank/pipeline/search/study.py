"""A study of Optuna in a run's folder: proposes what to try, and remembers what was tried."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.artifacts.journal import check_identity
from lowrank.core.structures import structures
from lowrank.errors import ArtifactError, LowRankError, first_line
from lowrank.pipeline.search.methods import DTYPES
from lowrank.results.tuning import Limits, Trial

STUDY_FILE = "tune.db"
LEAST, STEP = 0.1, 0.05
"""Of keep ratios."""
SINGLE = tuple(structure.name for structure in structures() if structure.by_rank)
OFFERS = ("all", ",".join(SINGLE), SINGLE[0])
"""Sets of structures that may be on offer."""
FIRST: tuple[dict[str, Any], ...] = (
    {"keep": 1.0, "dtype": "int8"},
    {"keep": 1.0, "dtype": "int4"},
    {"keep": 0.5, "dtype": "int8", "structures": "all"},
)
"""Tried before anything is proposed: what is to be beaten, and a usual choice."""
ATTEMPTS = 50
"""Proposals in a row that are all known: there is nothing new to try."""


class Study:
    """Trials as Optuna keeps them, in SQLite.

    Each proposal follows from the seed and the trials that were finished before it alone. So a study that was stopped
    goes on as if it had not been.

    Args:
        run: the folder.
        identity: all that trials depend on.
        limits: what a result may come to.
        minutes: healing that may be tried at most; 0 for none.
        seed: of the proposals.
        resume: go on with the study that is there; otherwise it is removed.

    Raises:
        LowRankError: if Optuna is not installed.
        PlanMismatch: if the study that is there was of something else.
    """

    def __init__(
        self, run: Path, identity: Mapping[str, Any], limits: Limits, minutes: float, seed: int, resume: bool
    ) -> None:
        path, self.limits, self.minutes, self.seed = run / STUDY_FILE, limits, minutes, seed
        self._optuna = import_optuna()
        if not resume:
            path.unlink(missing_ok=True)
        self._study = self._opened(path)
        before = self._study.user_attrs.get("identity")
        if before is not None:
            check_identity(run, before, identity)
        self._study.set_user_attr("identity", dict(identity))
        running = self._optuna.trial.TrialState.RUNNING
        for stale in self._study.get_trials(states=[running]):
            # Of a process that was stopped in it: it comes again, as the next one.
            self._study.tell(stale.number, state=self._optuna.trial.TrialState.FAIL)
            self._study.enqueue_trial(stale.params)
        if not self._study.trials:
            for params in FIRST:
                self._study.enqueue_trial(params)

    @property
    def trials(self) -> list[Trial]:
        """Those that are finished, in the order in which they were."""
        stored = [each.user_attrs["trial"] for each in self._study.trials if "trial" in each.user_attrs]
        try:
            return sorted(map(Trial.from_json, stored), key=lambda trial: trial.number)
        except TypeError:
            raise ArtifactError("the study holds a trial that is not whole; search again without --resume") from None

    def ask(self) -> tuple[Any, Trial] | None:
        """The next one to try, and what to give to `tell` with it; None if there is nothing new."""
        tried = self.trials
        known = {_key(trial) for trial in tried}
        for attempt in range(ATTEMPTS):
            seed = np.random.SeedSequence((self.seed, len(tried), attempt)).generate_state(1)[0]
            with _hushed():
                self._study.sampler = self._optuna.samplers.TPESampler(
                    seed=int(seed), constraints_func=lambda done: done.user_attrs["excess"]
                )
                asked = self._study.ask()
                proposed = self._proposed(asked, len(tried) + 1)
            if _key(proposed) not in known:
                return asked, proposed
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        return None

    def tell(self, asked: Any, trial: Trial) -> None:
        """Remember what a trial came to."""
        asked.set_user_attr("trial", trial.to_json())
        if trial.drop is None or trial.bytes is None or trial.ms is None:
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
            return
        asked.set_user_attr("excess", self.limits.excess(trial.drop, trial.bytes, trial.ms))
        with _hushed():
            self._study.tell(asked, float(getattr(trial, self.limits.goal)))

    def _proposed(self, asked: Any, number: int) -> Trial:
        keep = round(asked.suggest_float("keep", LEAST, 1.0, step=STEP), 4)
        dtype = asked.suggest_categorical("dtype", DTYPES)
        structures, minutes = OFFERS[0], 0.0
        if keep < 1:
            structures = asked.suggest_categorical("structures", OFFERS)
            if self.minutes:
                minutes = asked.suggest_categorical("minutes", (0.0, self.minutes / 2, self.minutes))
        return Trial(number=number, keep=keep, structures=structures, dtype=dtype, minutes=minutes)

    def _opened(self, path: Path) -> Any:
        try:
            with _hushed():
                return self._optuna.create_study(
                    storage=f"sqlite:///{path}", study_name="lowrank", direction="minimize", load_if_exists=True
                )
        except Exception as error:
            raise ArtifactError(
                f"cannot open the study {path}: {first_line(error)}; search again without --resume"
            ) from None


def import_optuna() -> Any:
    """The package.

    Raises:
        LowRankError: if it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise LowRankError(
            "a search needs Optuna; pip install 'lowrank[tune]', or try budgets with `lowrank sweep`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _key(trial: Trial) -> tuple[Any, ...]:
    return (trial.keep, trial.structures, trial.dtype, trial.minutes)


@contextmanager
def _hushed() -> Iterator[None]:
    with warnings.catch_warnings():
        # Constraints are called experimental.
        warnings.simplefilter("ignore")
        yield
