"""`package.module:function`: a metric that a user has written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lowrank.backends.base import Backend, Outputs, signature_of
from lowrank.backends.inputs import Feed, Signature
from lowrank.core.distance import Array
from lowrank.errors import LowRankError, TaskError, first_line
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.base import Score, Task
from lowrank.evaluate.tasks.inputs import Texts


@dataclass(frozen=True)
class MeasuredModel:
    """The model that a function is called with, dense or compressed, in torch or in ONNX Runtime."""

    task: str
    dense: Backend
    model: Runs

    @property
    def signature(self) -> Signature:
        """Names, types and shapes of its inputs."""
        return signature_of(self.dense)

    def run(self, feed: Feed) -> Array:
        """The output that the model is about, of one forward pass; arrays by input name."""
        return self.model.run(feed)

    def outputs(self, feed: Feed) -> Outputs:
        """All outputs of one forward pass, by name."""
        return self.model.outputs(feed)

    def embed(self, texts: Sequence[str]) -> Array:
        """A vector for each text: token vectors pooled as the model's files say, by their mean if they do not."""
        reader = Texts.of(self.task, self.dense, embeds=True)
        return reader.vectors(self.model, reader.batches(texts))

    @property
    def path(self) -> Path | None:
        """The file or folder that it came from, if it came from one: `model.onnx` of a run, or the dense model."""
        own = getattr(self.model, "path", None)
        if isinstance(own, Path):
            return own
        path = getattr(self.model, "source", {}).get("path") if self.model is self.dense else None
        return Path(path) if isinstance(path, str) else None

    @property
    def module(self) -> Any:
        """The torch module; None where the model is a graph."""
        return getattr(self.model, "module", None)


@dataclass(frozen=True)
class Callback:
    """The number that a function gives; higher is better unless it says `function.higher_is_better = False`."""

    name: str
    function: Callable[[MeasuredModel], float]
    dense: Backend

    @property
    def metric(self) -> str:
        """The function's name."""
        return self.name.rpartition(":")[2]

    @property
    def higher_is_better(self) -> bool:
        """As the function says."""
        return bool(getattr(self.function, "higher_is_better", True))

    def score(self, model: Runs) -> Score:
        """A value without samples, so without an interval."""
        try:
            value = self.function(MeasuredModel(self.name, self.dense, model))
            return Score.of_value(float(value))
        except LowRankError:
            raise
        except Exception as error:
            raise TaskError(
                f"--task {self.name} failed: {type(error).__name__}: {first_line(error)}; it is called with a model "
                "(.run, .outputs, .embed, .path, .module, .signature) and gives a number"
            ) from None


def read_callable(spec: str, module: str, function: str, dense: Backend, hint: str) -> Task:
    """A function that can be imported from the working directory.

    Raises:
        TaskError: if it cannot be.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        metric: Any = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"--task {spec}: {type(error).__name__}: {first_line(error)}{hint}; package.module:function must be "
            "importable from here"
        ) from None
    if not isinstance(metric, Callable):
        raise TaskError(f"--task {spec}: that is a {type(metric).__name__}, not a function of a model")
    return Callback(spec, metric, dense)
