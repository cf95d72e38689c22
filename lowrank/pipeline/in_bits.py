"""A compressed module in the bits of its file: rounded in place, so that it can be trained as what will be shipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.backends.inputs import Signature
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis
from lowrank.core.listing import listed
from lowrank.core.plan import Plan, stored_weights
from lowrank.core.rounding.formats import TRACED, Format, format_of
from lowrank.edge.integer import weights_in_bits
from lowrank.edge.target import Dtype
from lowrank.errors import ExportError, HealingError, LowRankError, first_line
from lowrank.pipeline.run.write import rounding_feeds

if TYPE_CHECKING:
    from torch import nn

    from lowrank.backends.torch.module import ModuleBackend
    from lowrank.healing.grids import Grids


def grids_of_file(
    path: Path, small: ModuleBackend, dtype: Dtype, plan: Plan, analysis: Analysis
) -> tuple[Grids, list[str]]:
    """The grids of all parameters that a finished graph holds in few bits; and remarks on what it holds so and what is
    trained in 32 bits all the same.

    Args:
        path: the graph.
        small: the model that it was made from.
        dtype: of its weights.
        plan: that the model follows.
        analysis: of the dense model.
    """
    from lowrank.healing.grids import grids_in

    try:
        names = weights_in_bits(path)
    except ExportError as error:
        return {}, [f"trained in 32 bits and rounded afterwards: {error}"]
    parts = {name: _parts(small.module, name) for name in names}
    held = {*names, *(part for each in parts.values() for part in each)}
    chosen = partial(format_of, dtype=dtype, known=stored_weights(plan, analysis))

    def stored(name: str) -> Format | None:
        return chosen(name) if name in held else None

    own = dict(small.module.named_parameters(remove_duplicate=False))
    read = {own[part]: names[name] for name in names for part in (name, *parts[name]) if part in own}
    grids = {name: replace(grid, read=read.get(own[name])) for name, grid in grids_in(small.module, stored).items()}
    trained = {id(own[name]) for name in grids}
    known = {name for name, each in own.items() if id(each) in trained}
    left = sorted(name for name in names if known.isdisjoint([name, *parts[name]]))
    if not left:
        return grids, []
    return grids, [f"{len(left)} matrices were trained in 32 bits and rounded afterwards: {listed(left)}"]


def _parts(module: nn.Module, name: str) -> list[str]:
    """The parameters that a graph has as one matrix of this name: query, key and value that all stayed dense."""
    from lowrank.nn import SplitLinear

    path = name.removeprefix(TRACED).removesuffix(".weight")
    layer = dict(module.named_modules()).get(path)
    return [f"{path}.{part}.weight" for part, _ in layer.named_children()] if isinstance(layer, SplitLinear) else []


@contextmanager
def in_bits(calibration: Calibration, small: ModuleBackend, grids: Grids) -> Iterator[None]:
    """Give the module the numbers that its file would have, and let it compute as an engine does, inside the block;
    where that fails, it has its own numbers again.

    Raises:
        HealingError: if it cannot be rounded.
    """
    from lowrank.healing.optimizer import restore_, snapshot
    from lowrank.healing.rounding import round_
    from lowrank.healing.straight_through import rounded_inputs

    places = {name: small.module.get_parameter(name) for name in grids}
    exact = snapshot(places)
    try:
        try:
            if grids:
                assert isinstance(small.signature, Signature)
                round_(small.module, small.signature, grids, rounding_feeds(calibration))
        except (LowRankError, RuntimeError, MemoryError) as error:
            raise HealingError(f"the model cannot be rounded as its file is ({first_line(error)})") from None
        with rounded_inputs(small.module, grids):
            yield
    except HealingError:
        restore_(places, exact)
        raise
