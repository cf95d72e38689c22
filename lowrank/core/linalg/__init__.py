"""Symmetric eigenproblems on LAPACK, and the bases that they give."""
