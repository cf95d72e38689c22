"""Tasks: what a model is for, as a number, measured on the dense model and on what was made of it."""

from lowrank.evaluate.tasks.base import Score, Task, drop_of
from lowrank.evaluate.tasks.benchmark import Benchmark
from lowrank.evaluate.tasks.compare import Comparison, compare
from lowrank.evaluate.tasks.specs import read_tasks

__all__ = ["Benchmark", "Comparison", "Score", "Task", "compare", "drop_of", "read_tasks"]
