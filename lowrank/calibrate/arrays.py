"""Samples of a model's inputs as arrays, from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.artifacts.outside import check_zip, is_file
from lowrank.backends.inputs import Feed, Signature
from lowrank.errors import CalibrationError, first_line

Arrays = Mapping[str, NDArray[Any]]


def array_files(path: Path) -> list[Path]:
    """The `.npz` itself; or those in a folder, each of which has samples of one length.

    Raises:
        CalibrationError: if there are none in it.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix == ".npz" and is_file(file))
    if not files:
        raise CalibrationError(
            f"{path} is a folder without .npz files; give a file of text, or save the model's inputs there, a file "
            "for each length, with numpy.savez(path, name=array)"
        )
    return files


def read_arrays(path: Path) -> Arrays:
    """The arrays in a file, with as many samples each.

    Raises:
        CalibrationError: if it cannot be read, or holds anything else.
    """
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise CalibrationError(
            f"there is no {path}; save the model's inputs with numpy.savez(path, name=array)"
        ) from None
    except Exception as error:
        if "allow_pickle" in str(error):
            raise CalibrationError(
                f"{path} holds an array of objects, which is a pickle and not read; save samples of unlike length in a "
                "folder, an .npz for each length, and give the folder"
            ) from None
        raise CalibrationError(
            f"{path} cannot be read as .npz ({first_line(error)}); save it with numpy.savez(path, name=array)"
        ) from None
    odd = [name for name, a in arrays.items() if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub"]
    if odd:
        raise CalibrationError(f"{path}: {odd[0]} does not hold numbers; save arrays of floats or integers")
    counts = {len(a) if a.ndim else 0 for a in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise CalibrationError(
            f"{path}: its arrays must have the same number of samples along their first axis, at least one"
        )
    return {name: a.astype(a.dtype.newbyteorder("=")) for name, a in arrays.items()}


def as_inputs(path: Path, arrays: Arrays, signature: Signature) -> Feed:
    """The arrays of a model's inputs in its types.

    Raises:
        CalibrationError: if one is missing, or holds fractions in the place of indices, or what is not finite.
    """
    lacking = [name for name in signature.names if name not in arrays]
    if lacking:
        raise CalibrationError(f"{path} has no array {lacking[0]}, which the model reads; it has {', '.join(arrays)}")
    for spec in signature.inputs:
        given = arrays[spec.name]
        if not spec.is_floating and not np.array_equal(given, np.trunc(given)):
            raise CalibrationError(f"{path}: {spec.name} must hold whole numbers, and holds fractions")
    numbers = {i.name: arrays[i.name].astype(i.array_dtype) for i in signature.inputs}
    if any(not np.isfinite(a).all() for a in numbers.values() if a.dtype.kind == "f"):
        raise CalibrationError(f"{path} holds NaN or infinite inputs; remove those samples")
    return numbers
