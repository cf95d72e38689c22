"""What one would do without factors: pruned weights, and a student with half of the layers."""

from lowrank.baselines.pruning import pruned, zeros_in
from lowrank.baselines.student import distillation, half_of, save_student

__all__ = ["distillation", "half_of", "pruned", "save_student", "zeros_in"]
