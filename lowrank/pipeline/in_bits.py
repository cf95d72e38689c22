"""A compressed module in the bits of its file: rounded in place, so that it can be trained as what will be shipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.backends.inputs import Signature
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan, stored_weights
from lowrank.core.rounding.formats import Format, format_of
from lowrank.edge.integer import weights_in_bits
from lowrank.edge.target import Dtype
from lowrank.errors import ExportError, HealingError, LowRankError, first_line
from lowrank.pipeline.run.write import rounding_feeds

if TYPE_CHECKING:
    from lowrank.backends.torch.module import ModuleBackend
    from lowrank.healing.grids import Grids


def grids_of_file(path: Path, small: ModuleBackend, dtype: Dtype, plan: Plan, analysis: Analysis) -> Grids:
    """The grids of all parameters that a finished graph holds in few bits.

    Args:
        path: the graph; of one that is missing or damaged no parameter is.
        small: the model that it was made from.
        dtype: of its weights.
        plan: that the model follows.
        analysis: of the dense model.
    """
    from lowrank.healing.grids import grids_in

    try:
        names = weights_in_bits(path)
    except ExportError:
        names = frozenset[str]()
    chosen = partial(format_of, dtype=dtype, known=stored_weights(plan, analysis))

    def stored(name: str) -> Format | None:
        return chosen(name) if name in names else None

    return grids_in(small.module, stored)


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
