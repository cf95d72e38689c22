"""What was measured, after: parity of torch and ONNX, fidelity to the dense model, latency."""
