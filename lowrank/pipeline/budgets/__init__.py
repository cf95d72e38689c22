"""Budgets whose meaning is measured: the size of the file, the drop of a metric, the time of operators."""
