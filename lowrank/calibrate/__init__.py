"""Calibration: data that the model is run on, and the Grams that it leaves."""

from lowrank.calibrate.collect import collect_grams
from lowrank.calibrate.data import Calibration, load_calibration, training_batches
from lowrank.calibrate.in_context import measure_contexts
from lowrank.calibrate.refit import sequential_refit
from lowrank.calibrate.sensitivity import measure_sensitivity

__all__ = [
    "Calibration",
    "collect_grams",
    "load_calibration",
    "measure_contexts",
    "measure_sensitivity",
    "sequential_refit",
    "training_batches",
]
