"""Connections to other packages: transformers and Olive."""
