"""What was measured, after: parity of torch and ONNX, fidelity to the dense model, latency."""

from lowrank.evaluate.fidelity import measure_fidelity
from lowrank.evaluate.latency import measure_latency
from lowrank.evaluate.parity import Parity, check_parity
from lowrank.results.report import Report

__all__ = ["Parity", "Report", "check_parity", "measure_fidelity", "measure_latency"]
