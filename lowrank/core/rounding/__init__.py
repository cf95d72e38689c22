"""Rounding: matrices in few bits, what that costs, and what it changes."""
