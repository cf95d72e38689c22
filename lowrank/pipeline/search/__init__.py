"""Searches: many results of one model, made and measured side by side."""
