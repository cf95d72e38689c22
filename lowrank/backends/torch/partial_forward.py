"""Running a module again and again with a change in one block: the blocks before it are not run again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.hooks import Enough, first_input, removed_after
from lowrank.backends.torch.inputs import call
from lowrank.backends.torch.replicas import Spares, replica
from lowrank.parallel import threads

Fed = Feed | Mapping[str, Tensor]
"""A batch as arrays, or as tensors that are where the module is."""


class Prefix:
    """The outputs of the first blocks of a module for some feeds, so that only later blocks have to run.

    A block is a child of an outermost `nn.ModuleList`; all that is remembered is the last output of each list. What
    is outside the lists (embeddings, heads) is run every time. Several threads may run it at once, each on another
    feed.

    Args:
        module: whose parameters may get other numbers meanwhile.
        signature: how it is fed.
        feeds: what it is run on.
        jobs: how many threads run it; more than one need a module that can be copied.
    """

    def __init__(self, module: nn.Module, signature: Signature, feeds: Sequence[Fed], jobs: int = 1) -> None:
        self.signature, self.feeds, self.jobs = signature, list(feeds), jobs
        self._modules = Spares(partial(replica, module) if jobs > 1 else lambda: module)
        self.blocks = [path for path, _ in blocks_of(module, lambda: self._call(module, 0))] if feeds else []
        self._lists = [path.rpartition(".")[0] for path in self.blocks]
        self._forget()
        if self.blocks and not self._faithful():
            self.blocks = []

    def _forget(self) -> None:
        self._at = 0
        self._known: list[dict[str, Any]] = [{} for _ in self.feeds]

    def block_of(self, name: str) -> int:
        """The index of the block that a layer is in; 0 for one that is in none."""
        return next((i for i in range(len(self.blocks)) if self.is_in(i, name)), 0)

    def is_in(self, at: int, name: str) -> bool:
        """Whether a layer is in a block."""
        return at < len(self.blocks) and name.startswith(f"{self.blocks[at]}.")

    def advance(self, at: int) -> None:
        """Remember what the blocks before `at` give, as the module now is; those remembered already are not run."""
        at = min(at, len(self.blocks))
        if at < self._at:
            self._forget()
        if at == self._at:
            return
        with threads(self.jobs) as pool:
            deque(pool.map(lambda index: self._remember(index, at), range(len(self.feeds))), maxlen=0)
        self._at = at

    def run(self, index: int) -> dict[str, Tensor]:
        """The outputs by name for one feed, the remembered blocks not run."""
        with self._skipping(index) as module:
            output = self._call(module, index)
        assert output is not None
        return output

    def reads(self, index: int, names: Sequence[str]) -> dict[str, Tensor]:
        """What some layers read of one feed; nothing after the last of them is run, nor it itself."""
        calls: dict[str, Tensor] = {}

        def keep(layer: nn.Module, args: Any, kwargs: Any, name: str) -> None:
            calls[name] = first_input(args, kwargs)
            if len(calls) == len(names):
                raise Enough

        with self._skipping(index) as module:
            layers = {name: module.get_submodule(name) for name in names}
            handles = [
                layer.register_forward_pre_hook(partial(keep, name=name), with_kwargs=True)
                for name, layer in layers.items()
            ]
            with removed_after(handles):
                self._call(module, index)
        return calls

    def gives(self, index: int, names: Sequence[str], at: int | None = None) -> dict[str, Tensor]:
        """What some layers give for one feed.

        Args:
            index: of the feed.
            names: of the layers.
            at: if given, all blocks before it are run to the end, and what they give is remembered; for all feeds,
                before anything else is asked, and then `moved_to` is called.
        """
        calls: dict[str, Tensor] = {}

        def keep(layer: nn.Module, args: Any, output: Tensor, name: str) -> None:
            calls[name] = output
            if len(calls) == len(names) and at is None:
                raise Enough

        with self._skipping(index) as module:
            layers = {name: module.get_submodule(name) for name in names}
            handles = [layer.register_forward_hook(partial(keep, name=name)) for name, layer in layers.items()]
            with removed_after(handles):
                if at is None:
                    self._call(module, index)
                else:
                    self._known[index] = self._outputs_before(module, index, at)
        return calls

    def moved_to(self, at: int) -> None:
        """What the blocks before `at` give is remembered of all feeds."""
        self._at = at

    def through(self, index: int) -> Tensor:
        """What the first block that is not remembered gives for one feed; nothing after it is run.

        Outside of `torch.no_grad` it can be differentiated by the block's parameters.
        """
        outputs: list[Tensor] = []

        def hook(block: nn.Module, args: Any, output: Any) -> None:
            outputs.append(main_tensor(output))
            raise Enough

        with (
            self._skipping(index) as module,
            removed_after([module.get_submodule(self.blocks[self._at]).register_forward_hook(hook)]),
        ):
            self._call(module, index, grad=torch.is_grad_enabled())
        return outputs[0]

    def remembered(self, index: int) -> Tensor:
        """What the last block that is remembered gave for one feed."""
        return main_tensor(self._known[index][self._lists[self._at - 1]])

    def _call(self, module: nn.Module, index: int, grad: bool = False) -> dict[str, Tensor] | None:
        with torch.set_grad_enabled(grad):
            try:
                return call(self.signature, module, self.feeds[index])
            except Enough:
                return None

    @contextmanager
    def _skipping(self, index: int) -> Iterator[nn.Module]:
        """A module whose remembered blocks give what they gave for a feed."""
        known, skipped = self._known[index], self.blocks[: self._at]
        with self._modules.one() as module:
            blocks = [module.get_submodule(path) for path in skipped]
            try:
                for block, place in zip(blocks, self._lists, strict=False):
                    # A copy: what follows may write to what it is given.
                    block.forward = lambda *_, output=known[place], **__: tree_map(_copied, output)
                yield module
            finally:
                for block in blocks:
                    block.__dict__.pop("forward", None)

    def _remember(self, index: int, at: int) -> None:
        with self._skipping(index) as module:
            self._known[index] = self._outputs_before(module, index, at)

    def _outputs_before(self, module: nn.Module, index: int, at: int) -> dict[str, Any]:
        """The last output of each list for one feed, of the blocks before `at`; nothing after them is run."""
        outputs = dict(self._known[index])

        def listen(block: nn.Module, args: Any, output: Any, number: int) -> None:
            outputs[self._lists[number]] = tree_map(_copied, output)
            if number == at - 1:
                raise Enough

        new = range(self._at, at)
        handles = (module.get_submodule(self.blocks[i]).register_forward_hook(partial(listen, number=i)) for i in new)
        with removed_after(handles):
            self._call(module, index)
        return outputs

    def _faithful(self) -> bool:
        """Whether the module gives the same with its first blocks skipped."""
        whole, feeds = self.run(0), self.feeds
        self.feeds = self.feeds[:1]
        try:
            self.advance(len(self.blocks) - 1)
            again = self.run(0)
        except Exception:
            # Code that looks into its blocks is run whole.
            return False
        finally:
            self.feeds = feeds
            self._forget()
        return all(torch.equal(output, again[name]) for name, output in whole.items())


def main_tensor(output: Any) -> Tensor:
    """The hidden state in what a block gives: its first tensor."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def outermost_lists(module: nn.Module) -> list[str]:
    """The names of the lists of modules that are in no other list: rows of blocks."""
    lists = [path for path, child in module.named_modules() if isinstance(child, nn.ModuleList)]
    return [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]


def blocks_of(module: nn.Module, run: Callable[[], Any]) -> list[tuple[str, nn.Module]]:
    """The children of the outermost lists in the order in which they are called; none if one is called twice."""
    blocks = {
        f"{path}.{name}": child
        for path in outermost_lists(module)
        for name, child in module.get_submodule(path).named_children()
    }
    called: list[str] = []
    hooks = (child.register_forward_hook(lambda *_, path=path: called.append(path)) for path, child in blocks.items())
    with removed_after(hooks):
        run()
    return [(path, blocks[path]) for path in called] if len(set(called)) == len(called) else []
