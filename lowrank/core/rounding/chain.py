"""Factors that are rounded together: what is lost in the first of them is made up for in those that read it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lowrank.core.linalg.eigen import Matrix
from lowrank.core.rounding.codes import Codes, even_latents, refitted_left
from lowrank.core.rounding.formats import Format
from lowrank.core.truncation.factors import Factors


def rounded_chain(
    lefts: Sequence[Matrix],
    right: Matrix,
    formats: Sequence[Format],
    first: Format,
    moment: Matrix | None,
    is_table: bool = False,
) -> tuple[Codes, list[Codes]]:
    """Round `y = left (right x)`: the channels between the factors are balanced, the right one is rounded, and each
    left one is fitted to it before it is rounded too.

    Args:
        lefts: rows x rank each; several weights may read one right factor.
        right: rank x cols.
        formats: of the left factors.
        first: of the right one.
        moment: `E[x x']` of the inputs; None takes inputs that are all alike.
        is_table: whether columns of the right factor are looked up, so that each of them has scales of its own.

    Returns:
        Of the right factor, transposed if it is a table, and of each left one.
    """
    pair = even_latents(Factors(np.concatenate(list(lefts)), right), moment)
    evened = np.asarray(pair.right, np.float64)
    codes = first.codes(evened.T) if is_table else first.codes(evened, moment)
    rounded = codes.matrix().T if is_table else codes.matrix()
    left = refitted_left(pair, rounded, moment)
    inner = rounded @ rounded.T if moment is None else rounded @ moment @ rounded.T
    edges = np.cumsum([0, *(len(each) for each in lefts)])
    parts = [left[start:stop] for start, stop in pairwise(edges.tolist())]
    return codes, [form.codes(part, inner) for form, part in zip(formats, parts, strict=True)]
