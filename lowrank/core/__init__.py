"""Matrices, spectra, ranks, plans: pure numpy and scipy. Knows no file format, no torch, no onnx."""
