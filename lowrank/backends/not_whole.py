"""Files and folders that are no whole model: what they are, by names and shapes, and what makes them whole."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lowrank.errors import UnsupportedModel

ADAPTER = re.compile(
    r"(^|[._])(lora_(A|B|E|embedding_A|embedding_B|magnitude_vector|up|down)|hada_w[12]_[ab]|lokr_w[12]\w*|ia3_l"
    r"|vera_lambda_[bd]|oft_[rR]|boft_[RS])([._]|$)"
)
"""Parts of names that PEFT and other trainers of adapters give."""
ADAPTER_CONFIG = "adapter_config.json"
SHARD = re.compile(r"-\d+-of-(\d+)\.")
RANK = re.compile(r"(?<=consolidated\.)\d+(?=\.)|(?<=mp_rank_)\d+")
"""The number of a file in a row of tensor parallel ones."""


@dataclass(frozen=True)
class Part:
    """Something that is no whole model."""

    kind: str
    """A word for machines."""
    what: str
    """What it is."""
    steps: tuple[str, ...]
    """What makes a model of it."""

    def refused(self, path: object) -> UnsupportedModel:
        """The error of a file or folder that is such a part, given as a model."""
        return UnsupportedModel(f"{path}: {self.what}; next: {', or: '.join(self.steps)}")


def merging(folder: Path | str) -> str:
    """The command that compresses a model with a LoRA merged into it."""
    return f"lowrank compress MODEL --lora {shlex.quote(str(folder))} --budget 0.5"


def part_of_names(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Part | None:
    """What a file with these tensors is, if it is no whole model."""
    if any("flat_param" in name for name in shapes):
        return Part(
            "fsdp-shard",
            "a shard of FSDP, whose tensors are flat pieces of layers (flat_param)",
            (
                "save the whole of it from all processes: torch.distributed.checkpoint.state_dict.get_model_state_dict("
                "model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))",
            ),
        )
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if len(empty) > len(shapes) / 2:
        folder = shlex.quote(str(path.parent))
        return Part(
            "zero-placeholders",
            f"placeholders of DeepSpeed ZeRO-3 ({len(empty)} of {len(shapes)} tensors are empty); the numbers are in "
            "its *_optim_states.pt files",
            (f"python zero_to_fp32.py {folder} OUT, with the script that DeepSpeed saved beside them, makes it whole",),
        )
    return part_with_adapter(path, shapes)


def part_with_adapter(path: Path, names: Iterable[str]) -> Part | None:
    """What a file with tensors of an adapter among these names is; None if there are none."""
    names = set(names)
    ours = {name for name in names if ADAPTER.search(name)}
    if not ours:
        return None
    stems = {name[: match.start()] for name in ours if (match := ADAPTER.search(name))}
    if any(f"{stem}.base_layer.weight" in names or f"{stem}.weight" in names for stem in stems):
        return Part(
            "unmerged-adapter",
            f"a model with a LoRA beside its layers, not merged ({len(ours)} of {len(names)} tensors are the LoRA's)",
            (
                "with PEFT, save model.merge_and_unload().state_dict(), whose layers are whole",
                f"save the adapter alone with model.save_pretrained(FOLDER): {merging('FOLDER')}",
            ),
        )
    return Part("adapter-weights", "weights of a LoRA, and no model of their own", (merging(path.parent),))


def part_in_folder(folder: Path | str, names: Iterable[str]) -> Part | None:
    """What a folder with files and folders of these names is, if it is no whole model."""
    names = set(names)
    place = shlex.quote(str(folder))
    if ADAPTER_CONFIG in names:
        return Part("adapter", "the folder of a LoRA, and no model of its own", (merging(folder),))
    if any(name.endswith(".distcp") for name in names):
        line = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {place} model.pt"
        line = f"python -m lightning.pytorch.utilities.consolidate_checkpoint {place}" if "meta.pt" in names else line
        what = "a distributed checkpoint (FSDP), in one file for each process"
        return Part("distributed-checkpoint", what, (f"{line} makes it whole",))
    if "config.json" in names:
        return None
    deepspeed = any(name.endswith(("_model_states.pt", "_optim_states.pt")) for name in names)
    deepspeed = deepspeed or {"latest", "checkpoint"} <= names
    if deepspeed or "zero_to_fp32.py" in names or any(name.startswith("global_step") for name in names):
        line = f"python zero_to_fp32.py {place} OUT, with the script that DeepSpeed saved in it"
        if {"latest", "checkpoint"} <= names and "zero_to_fp32.py" not in names:
            call = f"convert_zero_checkpoint_to_fp32_state_dict({str(folder)!r}, 'model.pt')"
            line = f'python -c "from lightning.pytorch.utilities.deepspeed import *; {call}"'
        what = "a checkpoint of DeepSpeed, in files for each process"
        return Part("zero-checkpoint", what, (f"{line}, makes it whole",))
    inner = next((name for name in sorted(names) if name.startswith("pytorch_model_fsdp")), None)
    if inner is not None and "." not in inner:
        return part_in_folder(Path(folder) / inner, [".distcp"])
    return None


def extracting(path: Path) -> str:
    """The command that saves the weights of a trainer's file alone, which runs what the file says."""
    new = path.with_suffix(".weights.pt").name
    code = f"import torch; torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], {new!r})"
    return f'python -c "{code}"'


def one_of_several(path: Path) -> tuple[str, ...]:
    """A note on a file whose name says that it is one of several; none if it is not."""
    numbered = SHARD.search(path.name)
    rank = RANK.search(path.name)
    count = int(numbered[1]) if numbered else 0
    if rank is not None:
        count = sum(
            1 for other in path.parent.glob(f"*{path.suffix}") if RANK.sub("", other.name) == RANK.sub("", path.name)
        )
    if count < 2:
        return ()
    return (
        f"{path.name} is one of {count} files of a model; what is in the others was not read: give the whole of it",
    )
