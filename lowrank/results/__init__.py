"""The JSON files of a run as dataclasses: `report.json`, `sweep.json`, `tune.json`, `tradeoff.json`."""
