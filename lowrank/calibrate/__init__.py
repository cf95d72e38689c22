"""Calibration: data that the model is run on, and the Grams that it leaves."""
