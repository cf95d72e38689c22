"""What was measured, after: parity of torch and ONNX, fidelity to the dense model, latency."""

from lowrank.evaluate.fidelity import measure_fidelity
from lowrank.evaluate.latency import measure_latency
from lowrank.evaluate.parity import check_parity

__all__ = ["check_parity", "measure_fidelity", "measure_latency"]
