"""Trained models of other kinds than those that lowrank is developed on; they ship in packages of PyPI."""
