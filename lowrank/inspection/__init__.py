"""What a file or folder is: models, results, tables and samples, from their headers where those are enough."""

from lowrank.inspection.description import Description
from lowrank.inspection.look import inspect

__all__ = ["Description", "inspect"]
