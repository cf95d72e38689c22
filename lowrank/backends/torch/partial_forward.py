"""Running a module again and again with a change in one block: the blocks before it are not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.hooks import Enough, first_input, removed_after
from lowrank.backends.torch.inputs import call

Fed = Feed | Mapping[str, Tensor]
"""A batch as arrays, or as tensors that are where the module is."""


class Prefix:
    """The outputs of the first blocks of a module for some feeds, so that only later blocks have to run.

    A block is a child of an outermost `nn.ModuleList`; all that is remembered is the last output of each list. What
    is outside the lists (embeddings, heads) is run every time.
    """

    def __init__(self, module: nn.Module, signature: Signature, feeds: Sequence[Fed]) -> None:
        self.module, self.signature, self.feeds = module, signature, list(feeds)
        self.blocks = blocks_of(module, lambda: self._call(self.feeds[0])) if feeds else []
        self._lists = [path.rpartition(".")[0] for path, _ in self.blocks]
        self._at = 0
        self._known: list[dict[str, Any]] = [{} for _ in self.feeds]
        if self.blocks and not self._faithful():
            self.blocks, self._at = [], 0

    def block_of(self, name: str) -> int:
        """The index of the block that a layer is in; 0 for one that is in none."""
        return next((i for i, (path, _) in enumerate(self.blocks) if name.startswith(f"{path}.")), 0)

    def advance(self, at: int) -> None:
        """Remember what the blocks before `at` give, as the module now is; those remembered already are not run."""
        at = min(at, len(self.blocks))
        if at < self._at:
            self._at, self._known = 0, [{} for _ in self.feeds]
        if at == self._at:
            return
        for i, feed in enumerate(self.feeds):
            outputs = dict(self._known[i])

            def keep(index: int, output: Any, outputs: dict[str, Any] = outputs) -> None:
                outputs[self._lists[index]] = output

            with self._skipping(i), self._listening(range(self._at, at), keep):
                self._call(feed)
            self._known[i] = outputs
        self._at = at

    def run(self, index: int) -> dict[str, Tensor]:
        """The outputs by name for one feed, the remembered blocks not run."""
        with self._skipping(index):
            output = self._call(self.feeds[index])
        assert output is not None
        return output

    def watch(self, index: int, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Run one feed until the last of some layers has been called: each one's input and output."""
        calls: dict[str, tuple[Tensor, Tensor]] = {}
        handles: list[Any] = []
        for name in names:

            def hook(layer: nn.Module, args: Any, kwargs: Any, output: Tensor, name: str = name) -> None:
                calls[name] = (first_input(args, kwargs), output)
                if len(calls) == len(names):
                    raise Enough

            handles.append(self.module.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        with removed_after(handles), self._skipping(index):
            self._call(self.feeds[index])
        return calls

    def through(self, index: int) -> Tensor:
        """What the first block that is not remembered gives for one feed; nothing after it is run.

        Outside of `torch.no_grad` it can be differentiated by the block's parameters.
        """
        outputs: list[Tensor] = []

        def hook(block: nn.Module, args: Any, output: Any) -> None:
            outputs.append(main_tensor(output))
            raise Enough

        with removed_after([self.blocks[self._at][1].register_forward_hook(hook)]), self._skipping(index):
            self._call(self.feeds[index], grad=torch.is_grad_enabled())
        return outputs[0]

    def remembered(self, index: int) -> Tensor:
        """What the last block that is remembered gave for one feed."""
        return main_tensor(self._known[index][self._lists[self._at - 1]])

    def _call(self, feed: Fed, grad: bool = False) -> dict[str, Tensor] | None:
        with torch.set_grad_enabled(grad):
            try:
                return call(self.signature, self.module, feed)
            except Enough:
                return None

    @contextmanager
    def _skipping(self, index: int) -> Iterator[None]:
        known = self._known[index]
        skipped = self.blocks[: self._at]
        try:
            for (_, block), place in zip(skipped, self._lists, strict=False):
                # A copy: what follows may write to what it is given.
                block.forward = lambda *_, output=known[place], **__: tree_map(_copied, output)
            yield
        finally:
            for _, block in skipped:
                block.__dict__.pop("forward", None)

    def _listening(self, which: range, keep: Callable[[int, Any], None]) -> AbstractContextManager[None]:
        """Keep the outputs of some blocks, and stop after the last of them."""

        def hook(index: int) -> Callable[..., None]:
            def listen(block: nn.Module, args: Any, output: Any) -> None:
                keep(index, tree_map(_copied, output))
                if index == which[-1]:
                    raise Enough

            return listen

        return removed_after(self.blocks[i][1].register_forward_hook(hook(i)) for i in which)

    def _faithful(self) -> bool:
        """Whether the module gives the same with its first blocks skipped."""
        whole = self._call(self.feeds[0])
        feeds, self.feeds = self.feeds, self.feeds[:1]
        try:
            self.advance(len(self.blocks) - 1)
            again = self.run(0)
        except Exception:
            # Code that looks into its blocks is run whole.
            return False
        finally:
            self.feeds, self._at, self._known = feeds, 0, [{} for _ in feeds]
        return whole is not None and all(torch.equal(output, again[name]) for name, output in whole.items())


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
