"""Truncation: second moments, the directions that they choose, and the factors that are cut."""
