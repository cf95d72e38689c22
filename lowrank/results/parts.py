"""The parts of a report, one class for each key of `report.json` that holds an object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowrank.calibrate.judging_set import Origin
from lowrank.core.distance import OutputKind
from lowrank.core.share import percent
from lowrank.edge.target import Dtype, Profile
from lowrank.results.json_part import LEFT_OUT, Part, rows_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets(Part):
    """Parameters of the targeted weights, before and after."""

    params_before: int
    params_after: int
    keep_ratio: float
    """The share of them that is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes(Part):
    """Parameters, bytes of the tensors, and multiply-adds a token in linear layers, of the whole model."""

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetResult(Part):
    """The budget that was asked for, and what was reached of it."""

    kind: str
    limit: float | None = None
    reached: float | None = None
    size: float | None = field(default=None, metadata=LEFT_OUT)
    """Bytes that the file was allowed beside a speed."""
    size_reached: float | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors(Part):
    """Relative errors."""

    relative: float | None = None
    """Of the model's output; of the targeted weights where the model cannot be run."""
    per_weight: dict[str, float] = field(default_factory=dict[str, float])
    """Of each weight's own output, as predicted on the held-out fold."""
    cast_relative: float | None = field(default=None, metadata=LEFT_OUT)
    """Of rounding factors to the types of their weights, in a streamed model."""
    cast_per_weight: dict[str, float] | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph(Part):
    """What `model.onnx` was written for, and how many of its operators stand for several."""

    profile: Profile = "portable"
    dtype: Dtype = "float32"
    fused: dict[str, int] = field(default_factory=dict[str, int])
    """Attention blocks, norms and gelus that run as one operator, by their kind."""
    rounding_error: float | None = field(default=None, metadata=LEFT_OUT)
    """Relative error of the output by rounding the graph."""
    dense_fused: dict[str, int] | None = field(default=None, metadata=LEFT_OUT)
    """The same counts of the dense model's graph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity(Part):
    """The largest difference between the model and its graph, over several shapes."""

    max_abs: float
    relative: float
    """As a share of the largest number of the output."""
    cases: list[str]
    outputs: dict[str, float] | None = field(default=None, metadata=LEFT_OUT)
    """The share of each output, by name."""
    noise: float | None = field(default=None, metadata=LEFT_OUT)
    """What other roundings of the model itself change, as such a share; None where the difference is small anyway."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency(Part):
    """Milliseconds of a run in ONNX Runtime and bytes of the graph: dense, compressed, and both in fewer bits."""

    dense_ms: float
    compressed_ms: float
    dense_rounded_ms: float | None = field(default=None, metadata=LEFT_OUT)
    speedup: float
    threads: int
    cores: int | None = None
    shapes: list[str]
    dense_onnx_bytes: int
    compressed_onnx_bytes: int
    dense_rounded_onnx_bytes: int | None = field(default=None, metadata=LEFT_OUT)
    dense_rounded_to: str | None = field(default=None, metadata=LEFT_OUT)
    """The type that the dense model was rounded to."""
    int8_ms: float | None = field(default=None, metadata=LEFT_OUT)
    """Of `model_int8.onnx`, if it was written."""
    int8_onnx_bytes: int | None = field(default=None, metadata=LEFT_OUT)
    predicted_ms: float | None = field(default=None, metadata=LEFT_OUT)
    """What the plan was expected to take, if it was chosen for its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison(Part):
    """One row of the table of tasks: the scores of both models on the same samples."""

    task: str
    metric: str
    higher_is_better: bool
    dense: float
    compressed: float
    drop: float
    """Positive for worse; see `evaluate.tasks.drop_of`."""
    low: float | None = None
    """The drop's confidence interval; None where only the value is known."""
    high: float | None = None
    samples: int | None = None
    resamples: int = 0
    confidence: float = 0.95


FIDELITY = {"logits": "agreement", "embedding": "ranking", "values": "explained", "choices": "agreement"}
"""The figure that is called fidelity, by what the output is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputQuality(Part):
    """How near one output is to that of the dense model on one set of samples."""

    name: str
    kind: OutputKind | None = field(default=None, metadata=LEFT_OUT)
    """What it is, and so how it is measured."""
    fidelity: float
    """From 0 to 1: `agreement` of logits and choices, `ranking` of embeddings, `explained` of values."""
    agreement: float | None = field(default=None, metadata=LEFT_OUT)
    """Share of positions that count with the same first choice of class or token, or of choices that are the same."""
    kl: float | None = field(default=None, metadata=LEFT_OUT)
    """Mean divergence of the dense distribution to the compressed one, in nats."""
    ranking: float | None = field(default=None, metadata=LEFT_OUT)
    """Mean nDCG@10 of the dense model's own ten nearest among the other samples."""
    spearman: float | None = field(default=None, metadata=LEFT_OUT)
    """Rank correlation of the similarities of all pairs."""
    cosine: float | None = field(default=None, metadata=LEFT_OUT)
    """Mean cosine of the two embeddings of a sample."""
    explained: float | None = field(default=None, metadata=LEFT_OUT)
    """Share of the dense output's variance, after its constant part."""
    relative_error: float | None = field(default=None, metadata=LEFT_OUT)

    @property
    def figures(self) -> dict[str, float]:
        """The measures that fit the kind of output, by name."""
        content = {name: value for name, value in self.to_json().items() if isinstance(value, int | float)}
        return {name: value for name, value in content.items() if name not in ("fidelity", "samples")}


@dataclass(frozen=True, kw_only=True, slots=True)
class SetQuality(OutputQuality):
    """How near the outputs are to those of the dense model on one set of samples: all figures are those of the output
    that is farthest from it."""

    origin: Origin | None = field(default=None, metadata=LEFT_OUT)
    """Where its samples are from."""
    samples: int
    output: str | None = field(default=None, metadata=LEFT_OUT)
    """The name of that output, where there are several."""
    outputs: list[OutputQuality] | None = field(default=None, metadata={**LEFT_OUT, "read": rows_of(OutputQuality)})
    """Every output, where there are several."""

    @property
    def order(self) -> float:
        """The fidelity, by which sets are ordered; what is no number comes before all others."""
        return self.fidelity if math.isfinite(self.fidelity) else -1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality(Part):
    """How near the outputs are to those of the dense model, and what was measured on tasks."""

    dtype: str | None = field(default=None, metadata=LEFT_OUT)
    """The type that the model was rounded to, where it is the dense one in fewer bits."""
    kind: OutputKind | None = field(default=None, metadata=LEFT_OUT)
    """What the output is that the fidelity is of, and so how it is measured."""
    output: str | None = field(default=None, metadata=LEFT_OUT)
    """Its name, where the model has several: the worst of them on the worst of the sets."""
    fidelity: float | None = field(default=None, metadata=LEFT_OUT)
    """How often a user gets the dense model's answer, from 0 to 1, on the worst of the sets."""
    worst: str | None = field(default=None, metadata=LEFT_OUT)
    """The name of that set."""
    relative_error: float | None = field(default=None, metadata=LEFT_OUT)
    cosine: float | None = field(default=None, metadata=LEFT_OUT)
    """Of the data, the first of the sets; see `SetQuality`."""
    kl: float | None = field(default=None, metadata=LEFT_OUT)
    agreement: float | None = field(default=None, metadata=LEFT_OUT)
    samples: float | None = field(default=None, metadata=LEFT_OUT)
    data: str | None = field(default=None, metadata=LEFT_OUT)
    """What its samples are."""
    sets: list[SetQuality] | None = field(default=None, metadata={**LEFT_OUT, "read": rows_of(SetQuality)})
    """Every set that was measured on, the data first."""
    dense_rounded: Quality | None = field(
        default=None, metadata={**LEFT_OUT, "read": lambda content: Quality.from_json(content)}
    )
    """The same of the dense model in fewer bits."""
    int8: Quality | None = field(
        default=None, metadata={**LEFT_OUT, "read": lambda content: Quality.from_json(content)}
    )
    """The same of `model_int8.onnx`."""
    tasks: list[Comparison] | None = field(default=None, metadata={**LEFT_OUT, "read": rows_of(Comparison)})

    @property
    def figures(self) -> dict[str, float]:
        """All numbers of the data, by name."""
        numbers = {name: value for name, value in self.to_json().items() if isinstance(value, int | float)}
        return {name: value for name, value in numbers.items() if name != "fidelity"}

    @property
    def if_finite(self) -> Quality | None:
        """The same; None if the outputs were not finite on every set, since a file holds no such numbers."""
        return self if all(math.isfinite(row.fidelity) for row in self.sets or ()) else None

    @property
    def where(self) -> str:
        """The output and the set that the fidelity is of, and of how many it is the worst."""
        count, named = len(self.sets or ()), f"in {self.output} " if self.output else ""
        return f"{named}on the worst of {count} sets ({self.worst})" if count > 1 else f"{named}on {self.worst}"

    @property
    def headline(self) -> str:
        """The one sentence that decides; empty where nothing of the kind was measured.

        Example:
            >>> Quality(kind="embedding", fidelity=0.874, worst="short texts").headline
            'Same answers as the dense model: 87.4 % on short texts.'
        """
        if self.fidelity is None or self.worst is None:
            return ""
        return f"Same answers as the dense model: {percent(self.fidelity)} {self.where}."


@dataclass(frozen=True, kw_only=True, slots=True)
class HealingResult(Part):
    """How the model was healed once, and what came of it."""

    minutes: float | None = None
    steps: int | None = None
    seed: int | None = None
    device: str | None = None
    adapter: int | None = None
    """The rank of the residual that was trained; None if the factors were."""
    initial: str | None = None
    fold: str | None = None
    data: Mapping[str, Any] | None = None
    before: float | None = None
    """Held-out loss."""
    after: float | None = None
    rate: float | None = None
    """The learning rate that was found."""
    batch: int | None = None
    """Samples that were in memory at a time, at most."""
    curve: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Minutes or steps, see `unit`, and the held-out loss then."""
    problems: list[str] = field(default_factory=list[str])
    kept: bool = False
    """Whether the result is the model now."""
    unit: str | None = None
    unfolded: float | None = field(default=None, metadata=LEFT_OUT)
    """Held-out loss before the adapter was folded into the factors."""
    in_bits: int | None = field(default=None, metadata=LEFT_OUT)
    """Matrices that were trained in the few bits that the file has them in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement(Part):
    """What came of fitting each block to the dense block's outputs."""

    before: float
    """Held-out loss."""
    after: float
    steps: int
    """Of each block."""
    kept: bool
    """Whether the result is the model now: it is better than before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut(Part):
    """How a finished result was cut again."""

    run: str | None = None
    """The hash of that result."""
    from_: str | None = None
    """Its folder."""
    keep_before: float
    keep_after: float
    healed: int | None = None
    """How often it had been healed; None where no report tells."""
    predicted: dict[str, float] = field(default_factory=dict[str, float])
    weights: float | None = None
    """Relative difference of all weights together from what they were."""
    quality: Quality | None = field(default=None, metadata={"read": Quality.from_json})
    """How near the outputs are to those that it had."""
    as_it_was: dict[str, str] = field(default_factory=dict[str, str])
    """Groups that could not be cut, each with the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped(Part):
    """A tensor that was left as it is, and why."""

    name: str
    shape: list[int]
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance(Part):
    """What it takes to repeat a run."""

    command: list[str] | None = field(default=None, metadata=LEFT_OUT)
    versions: dict[str, str] | None = field(default=None, metadata=LEFT_OUT)
    processor: str | None = field(default=None, metadata=LEFT_OUT)
    earlier: list[list[str]] | None = field(default=None, metadata=LEFT_OUT)
    """Commands that made what this run began with, the first one first."""
    source: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    """Where the dense model was read from, with its fingerprint."""
    analysis: str | None = field(default=None, metadata=LEFT_OUT)
    plan: str | None = field(default=None, metadata=LEFT_OUT)
    """Hashes."""
    refit: bool | None = field(default=None, metadata=LEFT_OUT)
    cut_from: str | None = field(default=None, metadata=LEFT_OUT)
    """The hash of the result that was cut."""
