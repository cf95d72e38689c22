"""A model run block by block: one block has its numbers at a time, and hidden states wait on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.checkpoint.backend import CheckpointBackend
from lowrank.backends.checkpoint.skeleton import prefix_of, skeleton, stored_names
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.moment_sums import Observe
from lowrank.backends.torch import huggingface
from lowrank.backends.torch.hooks import Enough, first_input
from lowrank.backends.torch.inputs import call
from lowrank.backends.torch.moments import watching
from lowrank.backends.torch.partial_forward import main_tensor, outermost_lists
from lowrank.backends.torch.replicas import Spares, can_be_copied, replica
from lowrank.core.truncation.gram import Side
from lowrank.core.weight import Weight
from lowrank.errors import CalibrationError, first_line

RunFeed = Callable[[int, Observe], None]
"""Runs a block on the feed of a number, and shows the moments of what its weights saw."""
Called = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with beside its hidden state."""


class BlockRunner:
    """The blocks of a checkpoint, each run on what the one before it gave, in float32.

    Args:
        backend: the checkpoint, fed with a signature.
        feeds: batches of inputs.
        folder: for hidden states; what is left of an earlier run there is gone on with.

    Raises:
        CalibrationError: if the model is not one row of blocks.
    """

    def __init__(self, backend: CheckpointBackend, feeds: Sequence[Feed], folder: Path) -> None:
        assert isinstance(backend.signature, Signature)
        self.backend, self.signature, self.folder = backend, backend.signature, folder
        self.feeds = list(feeds)
        config = huggingface.read_config(next(path for path in backend.extras if path.name == "config.json"))
        self.module = skeleton(backend.source["path"], config, torch.float32)
        self.paths = _row_of(self.module)
        self.copies = can_be_copied(self.module)
        """Whether several threads can run a block at once, each on a copy of the module."""
        self._calls: list[list[Called]] = []

    def weights_of(self, index: int, weights: Sequence[Weight]) -> list[Weight]:
        """The weights among some that are in a block."""
        return [w for w in weights if w.layers[0].name.startswith(f"{self.paths[index]}.")]

    def prepare(self, afresh: bool) -> None:
        """Run what comes before the blocks, and learn what each of them is called with.

        The blocks stand still meanwhile: masks and positions do not depend on what they give.

        Args:
            afresh: whether the first block is to be run.
        """
        outside = [n for n, _ in self.module.named_parameters() if not any(n.startswith(f"{p}.") for p in self.paths)]
        self._fill(outside)
        begun = self.folder / "0"
        if afresh:
            begun.mkdir(parents=True, exist_ok=True)
        for number, feed in enumerate(self.feeds):
            hidden, calls = self._before(feed)
            self._calls.append(calls)
            if afresh:
                _save(begun / f"{number}.npy", hidden)
        self._empty(outside)

    @contextmanager
    def running(
        self, index: int, weights: Sequence[Weight], sides: Mapping[str, Side], jobs: int = 1
    ) -> Iterator[RunFeed]:
        """What runs one block on the feed of a number, and shows the moments that its weights saw; see
        `Backend.watching`.

        At the end of the block of code all feeds must have been run: what they gave is what the next block reads.

        Args:
            index: the block, whose predecessor was run.
            weights: of the block.
            sides: which moment of each.
            jobs: how many threads call it at once.
        """
        path = self.paths[index]
        names = [n for n, _ in self.module.named_parameters() if n.startswith(f"{path}.")]
        self._fill(names)
        after = self.folder / f"{index + 1}.unfinished"
        shutil.rmtree(after, ignore_errors=True)
        after.mkdir()
        entering = Lock()
        with ExitStack() as stack:

            def watched_block() -> _Watched:
                with entering:
                    module = replica(self.module) if jobs > 1 else self.module
                    return _Watched(module, path, self.signature, weights, sides, stack)

            spares = Spares(watched_block)

            def run(number: int, observe: Observe) -> None:
                args, kwargs = self._calls[number][index]
                hidden = torch.from_numpy(np.load(self.folder / str(index) / f"{number}.npy"))
                with spares.one() as watched:
                    result = watched(self.feeds[number], observe, hidden, *args, **kwargs)
                _save(after / f"{number}.npy", result)

            yield run
        shutil.rmtree(self.folder / str(index + 1), ignore_errors=True)
        os.replace(after, self.folder / str(index + 1))
        self._empty(names)

    def forget(self, index: int) -> None:
        """Remove the hidden states that a block was run on."""
        shutil.rmtree(self.folder / str(index), ignore_errors=True)

    def has(self, index: int) -> bool:
        """Whether the hidden states that a block is run on are there."""
        return (self.folder / str(index)).is_dir()

    def _before(self, feed: Feed) -> tuple[Tensor, list[Called]]:
        """The first block's hidden state, and what each block is called with beside its own."""
        reasons: list[str] = []
        for wrapped in (_plain, _first):
            hidden: list[Tensor] = []
            calls: list[Called] = []
            for path in self.paths:
                self.module.get_submodule(path).forward = partial(_standing, hidden, calls, len(self.paths), wrapped)
            try:
                with torch.no_grad():
                    call(self.signature, self.module, feed)
            except Enough:
                return hidden[0], calls
            except Exception as error:
                # A block gives its hidden state alone, or first of several: only running tells.
                reasons.append(first_line(error))
            finally:
                for path in self.paths:
                    self.module.get_submodule(path).__dict__.pop("forward", None)
        raise CalibrationError(
            f"{self.backend.source['path']}: its blocks cannot be run one by one ({reasons[0]}); calibrate it whole "
            "with more --memory, or use --calib none"
        )

    def _fill(self, names: Sequence[str]) -> None:
        """Give some parameters their numbers, in float32."""
        shards = self.backend.shards
        for name, stored in stored_names(names, shards.tensors, prefix_of(self.module)).items():
            self._set(name, shards.tensor(stored).float())

    def _empty(self, names: Sequence[str]) -> None:
        for name in names:
            self._set(name, torch.empty_like(self.module.get_parameter(name), device="meta"))

    def _set(self, name: str, tensor: Tensor) -> None:
        owner, _, key = name.rpartition(".")
        self.module.get_submodule(owner)._parameters[key] = nn.Parameter(tensor, requires_grad=False)


class _Watched:
    """A block of a module whose moments are shown.

    Args:
        module: the whole, for this alone.
        path: of the block.
        signature: how the module is fed.
        weights: which are watched.
        sides: which moment of each.
        stack: ends the watching.
    """

    def __init__(
        self,
        module: nn.Module,
        path: str,
        signature: Signature,
        weights: Sequence[Weight],
        sides: Mapping[str, Side],
        stack: ExitStack,
    ) -> None:
        self._block = module.get_submodule(path)
        self._called: Called = ((), {})
        self._given: Tensor | None = None
        self._watch = stack.enter_context(watching(module, signature, weights, sides, self._forward))

    def __call__(self, feed: Feed, observe: Observe, /, *args: Any, **kwargs: Any) -> Tensor:
        """The hidden state that the block gives."""
        self._called = args, kwargs
        self._watch(feed, observe)
        given, self._given = self._given, None
        assert given is not None
        return given

    def _forward(self, _: Feed) -> None:
        args, kwargs = self._called
        self._given = main_tensor(self._block(*args, **kwargs))


def _plain(hidden: Tensor) -> Any:
    return hidden


def _first(hidden: Tensor) -> Any:
    return (hidden,)


def _standing(
    hidden: list[Tensor], calls: list[Called], count: int, wrapped: Callable[[Tensor], Any], *args: Any, **kwargs: Any
) -> Any:
    """In the place of a block: takes down what it is called with, and gives its hidden state back."""
    given = first_input(args, kwargs)
    if hidden and given.shape != hidden[0].shape:
        raise ValueError(f"hidden states of {tuple(hidden[0].shape)} became {tuple(given.shape)}")
    if not args:
        kwargs = {name: value for name, value in kwargs.items() if value is not given}
    hidden.append(given)
    calls.append((args[1:], kwargs))
    if len(calls) == count:
        raise Enough
    return wrapped(given)


def _row_of(module: nn.Module) -> list[str]:
    """The names of the blocks: the children of the only outermost list."""
    outermost = outermost_lists(module)
    if len(outermost) != 1:
        raise CalibrationError(
            f"a {type(module).__name__} is not one row of blocks ({len(outermost)} lists), so it cannot be calibrated "
            "block by block; calibrate it whole with more --memory, or use --calib none"
        )
    return [f"{outermost[0]}.{name}" for name, _ in module.get_submodule(outermost[0]).named_children()]


def _save(path: Path, tensor: Tensor) -> None:
    np.save(path, tensor.detach().float().numpy())
