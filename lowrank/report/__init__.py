"""How results are shown to people: tables, the page, plots, and model cards."""
