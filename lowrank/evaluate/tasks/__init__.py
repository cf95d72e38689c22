"""Tasks: what a model is for, as a number, measured on the dense model and on what was made of it."""
