"""Files of a run."""

from lowrank.artifacts.analysis import load_analysis, save_analysis
from lowrank.artifacts.files import hash_files, hash_json, make_folder, parse_json, read_json, staged, write_json

__all__ = [
    "hash_files",
    "hash_json",
    "load_analysis",
    "make_folder",
    "parse_json",
    "read_json",
    "save_analysis",
    "staged",
    "write_json",
]
