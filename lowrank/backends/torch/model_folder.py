"""A module in a folder: its tensors, the record of what was replaced, and the model's other files."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.artifacts.files import RECORD_FILE, write_json
from lowrank.backends.config_block import CONFIG_FILE, write_block
from lowrank.backends.inputs import Signature
from lowrank.backends.torch.program import PREFIX, save_program
from lowrank.backends.torch.tensors import MODEL_FILE, save_state
from lowrank.errors import ArtifactError


def copy_extras(extras: Sequence[Path], config: Path | None, folder: Path) -> None:
    """Copy files and folders that belong to a model; the config becomes `config.json`, whatever it is called."""
    for extra in extras:
        target = folder / (CONFIG_FILE if extra == config else extra.name)
        if extra.is_dir():
            shutil.copytree(extra, target, ignore=shutil.ignore_patterns(".*"))
        else:
            shutil.copyfile(extra, target)


def write_module(
    module: nn.Module,
    signature: Signature | str,
    rebuild: Mapping[str, Any],
    replaced: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> None:
    """Write the tensors of a module, and how `load` builds it again.

    Args:
        module: an exported program's, or any other.
        signature: how it is fed.
        rebuild: the kind of model, and what that kind needs to be built.
        replaced: for each weight what `record_of` gave.
        folder: has the model's config already, if it has one.
    """
    record: dict[str, Any] = {"rebuild": dict(rebuild), "replaced": replaced}
    if rebuild["kind"] == "program":
        assert isinstance(signature, Signature)
        save_program(module, signature, folder)
        record["replaced"] = {
            name: {**each, "layers": [PREFIX + layer for layer in each["layers"]]} for name, each in replaced.items()
        }
    else:
        record["aliases"] = save_state(module.state_dict(keep_vars=True), folder / MODEL_FILE)
    if rebuild["kind"] == "huggingface":
        write_block(folder, record)
    write_json(folder / RECORD_FILE, "model", record)


def check_same(folder: Path, module: nn.Module, loaded: nn.Module, unwritten: Collection[str] = ()) -> None:
    """Check that the module that a folder gives has the tensors of the one that was written to it.

    Args:
        folder: that was written.
        module: what was written.
        loaded: what was read.
        unwritten: tensors that are not in the folder, and are drawn anew.

    Raises:
        ArtifactError: if it has others.
    """
    before, saved = module.state_dict(), loaded.state_dict()
    wrong = [
        name
        for name in before
        if name not in saved or (name not in unwritten and not _identical(before[name], saved[name]))
    ]
    if wrong or len(saved) != len(before):
        raise ArtifactError(
            f"{folder}: the saved model is not the one that was made: {len(wrong)} tensors differ, "
            f"{(wrong or ['?'])[0]} for one; please report this with the model's config"
        )


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
