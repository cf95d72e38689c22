"""Tell transformers of compressed models when it is imported, before or after lowrank, without importing it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PLACE = "transformers.quantizers.auto"
"""The module that keeps the list of quantizers."""


def register_when_imported() -> None:
    """Register lowrank's quantizer now if transformers has its list already, else as soon as it has."""
    if PLACE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    from lowrank.backends.torch.quantizer import register

    register()


class _Finder:
    """Finds the one module as Python would, and registers lowrank after it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for every other module."""
        if fullname != PLACE:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader)
            spec.loader = loader
        return spec


class _Loader:
    # Not those of importlib.abc, whose import takes longer than all else here.
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the inner one does."""
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the inner one does; then lowrank registers itself."""
        self.inner.exec_module(module)
        _register()
