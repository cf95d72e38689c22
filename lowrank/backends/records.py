"""What `lowrank.json` says of replaced layers, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
"""Of one weight."""


def is_padded(record: Record) -> bool:
    """Whether a layer is narrower than what is around it: zeros are put in, or inputs left out."""
    return bool(record.get("spread") or record.get("picks"))


def wide_heads(replaced: Mapping[str, Record]) -> list[str]:
    """A note on the layers of narrower heads whose attention keeps the width that it had, if there are any.

    Args:
        replaced: the records by weight name.
    """
    wide = [record["layers"][0] for record in replaced.values() if is_padded(record) and "attention" not in record]
    if not wide:
        return []
    return [
        f"{len(wide)} layers of narrower heads ({wide[0]} for one) keep their width in torch, filled up with zeros: "
        "the attention around them does not run at a smaller one. A graph has no zeros where it can do without"
    ]
