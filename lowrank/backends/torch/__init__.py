"""Torch models: Hugging Face folders, safetensors, state dicts, modules and exported programs."""

from lowrank.backends.torch.load import load
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.open import open_module, open_path
from lowrank.backends.torch.state_dict import StateDictBackend

__all__ = ["ModuleBackend", "StateDictBackend", "load", "open_module", "open_path"]
