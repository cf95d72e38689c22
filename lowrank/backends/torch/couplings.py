"""Which weights of a module are coupled, found by changing them together and looking whether the output stays.

Names and shapes only propose. A head's channels can have any coordinates if, and only if, the output is the same after
a random change of them; a neuron flows through one column of the next weight and nowhere else if, and only if, the
model without it equals the model with that column at zero. So norms between query and key, attention
sinks or convolutions between neurons need no list of architectures: the experiment fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Signature
from lowrank.backends.torch.hooks import first_input, removed_after
from lowrank.backends.torch.inputs import call, in_float32
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.core.match import in_block
from lowrank.core.truncation.attention import pairs_of
from lowrank.core.weight import ROTARY, Coupling, Weight

TOLERANCE = 1e-3
"""Of the output's largest number: float32 leaves 1e-5, another function 1e-1."""
NAMES = {
    "query": re.compile(r"^(q|wq|query|to_q|c_q)$|^q_|^query_|_q$"),
    "key": re.compile(r"^(k|wk|key|to_k|c_k)$|^k_|^key_|_k$"),
    "value": re.compile(r"^(v|wv|value|to_v|c_v)$|^v_|^value_|_v$"),
}


def find_couplings(module: nn.Module, signature: Signature | str, weights: Sequence[Weight]) -> tuple[Coupling, ...]:
    """The couplings between the linear weights inside a module's blocks; none if it cannot be run."""
    candidates = [w for w in weights if w.is_linear and in_block(w.name)]
    if isinstance(signature, str) or not candidates:
        return ()
    try:
        trial = _Trial(module_in_float32(module), in_float32(signature), candidates)
    except Exception:
        # A model that does not run on random inputs tells nothing.
        return ()
    couplings: list[Coupling] = [Coupling("same_input", names) for names in trial.sharing() if len(names) > 1]
    for query, key, value, output in trial.attentions():
        couplings += _of_attention(trial, query, key, value, output)
    taken = {name for coupling in couplings if coupling.kind != "same_input" for name in coupling.weights}
    hidden = [names for names in trial.feed_forwards() if not taken & set(names)]
    if trial.keeps([Coupling("hidden", names) for names in hidden]):
        return (*couplings, *(Coupling("hidden", names) for names in hidden))
    return (*couplings, *(coupling for names in hidden if trial.keeps([coupling := Coupling("hidden", names)])))


def _of_attention(trial: _Trial, query: str, key: str, value: str, output: str | None) -> list[Coupling]:
    """The couplings of one attention, with the fewest heads for which the experiment holds."""
    couplings: list[Coupling] = []
    for heads in trial.head_counts(query):
        width = trial.rows(query) // heads
        kv_heads = trial.rows(key) // width
        if trial.rows(key) % width or heads % max(kv_heads, 1) or trial.rows(value) != trial.rows(key):
            continue
        wanted = [Coupling("query_key", (query, key), heads, kv_heads)]
        if output is not None and trial.cols(output) == trial.rows(query):
            wanted.append(Coupling("value_output", (value, output), heads, kv_heads))
        couplings = [coupling for coupling in wanted if trial.keeps([coupling])]
        if couplings and couplings[0].kind == "value_output" and width % 2 == 0:
            # The heads are known now; pairs of neighbours would be free in heads of any width.
            rotary = (Coupling(kind, (query, key), heads, kv_heads) for kind in ROTARY)
            couplings = [*[coupling for coupling in rotary if trial.keeps([coupling])][:1], *couplings]
        if couplings:
            break
    return couplings


class _Trial:
    """A module that can be run with some of its parameters changed."""

    def __init__(self, module: nn.Module, signature: Signature, weights: Sequence[Weight]) -> None:
        self.module, self.signature = module, signature
        self.weights: Mapping[str, Weight] = {w.name: w for w in weights}
        self.feed = signature.example(2, 8)
        self.generator = torch.Generator().manual_seed(0)
        self.calls: list[tuple[str, int]] = []
        """The weights of a forward pass as they are called, and which tensor each reads."""
        inputs: dict[int, Tensor] = {}
        handles: list[Any] = []
        for weight in weights:

            def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any, name: str = weight.name) -> None:
                tensor = first_input(args, kwargs)
                # Kept alive, so that no later tensor has its address.
                inputs[id(tensor)] = tensor
                self.calls.append((name, id(tensor)))

            layer = module.get_submodule(weight.layers[0].name)
            handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        with removed_after(handles):
            self.scales: dict[str, Tensor] = {}
            self.before = self._run()
        # A layer that is called twice (one block applied again and again) is no part of a coupling.
        names = [name for name, _ in self.calls]
        self.calls = [(name, tensor) for name, tensor in self.calls if names.count(name) == 1]

    def rows(self, name: str) -> int:
        return self.weights[name].rows

    def cols(self, name: str) -> int:
        return self.weights[name].cols

    def sharing(self) -> list[tuple[str, ...]]:
        """Weights of one module that read the very same tensor, in the order in which they are called."""
        readers: dict[tuple[int, str], list[str]] = {}
        for name, tensor in self.calls:
            parent = self.weights[name].layers[0].name.rpartition(".")[0]
            readers.setdefault((tensor, parent), []).append(name)
        return [tuple(names) for names in readers.values()]

    def attentions(self) -> list[tuple[str, str, str, str | None]]:
        """Query, key and value projections with the layer that reads what they give, as names and order propose."""
        order = [name for name, _ in self.calls]
        parts: dict[str, dict[str, str]] = {}
        for name in order:
            parent, _, own = self.weights[name].layers[0].name.rpartition(".")
            for role, pattern in NAMES.items():
                if pattern.search(own):
                    parts.setdefault(parent, {})[role] = name
        attentions: list[tuple[str, str, str, str | None]] = []
        for named in parts.values():
            if set(named) != set(NAMES):
                continue
            last = max(order.index(name) for name in named.values())
            following = [n for n in order[last + 1 :] if self.cols(n) == self.rows(named["query"])]
            attentions.append((named["query"], named["key"], named["value"], following[0] if following else None))
        return attentions

    def feed_forwards(self) -> list[tuple[str, ...]]:
        """Layers whose outputs are as many as the inputs of one of the next, in one block."""
        order, blocks = [name for name, _ in self.calls], list[tuple[str, ...]]()
        for names in self.sharing():
            wide = [n for n in names if self.rows(n) == max(map(self.rows, names))]
            after = order.index(wide[-1]) + 1
            following = [n for n in order[after : after + 1] if self.cols(n) == self.rows(wide[0])]
            if following and self.rows(following[0]) == self.cols(wide[0]):
                blocks.append((*wide, following[0]))
        return blocks

    def head_counts(self, query: str) -> list[int]:
        """Numbers of heads that the modules around a projection, or the config, speak of, fewest first."""
        rows, counts = self.rows(query), set[int]()
        path = self.weights[query].layers[0].name.split(".")[:-1]
        owners: list[Any] = [
            self.module.get_submodule(".".join(path[: len(path) - up])) for up in range(min(2, len(path)))
        ]
        owners += [c for c in (getattr(o, "config", None) for o in [*owners, self.module]) if c is not None]
        for owner in owners:
            for name, number in vars(owner).items():
                if "head" in name and isinstance(number, int) and not isinstance(number, bool) and number > 0:
                    counts |= {number, rows // number}
        return sorted(c for c in counts if c and rows % c == 0 and rows // c > 1)

    def keeps(self, couplings: Sequence[Coupling]) -> bool:
        """Whether the model gives what it gave when the coupled weights are changed together."""
        if not couplings:
            return True
        with self._changing() as change, torch.no_grad():
            reference = self.before
            if couplings[0].kind == "hidden":
                halves = {
                    b.weights: torch.randperm(self.cols(b.weights[-1]), generator=self.generator) for b in couplings
                }
                halves = {names: order[: max(1, len(order) // 2)].sort().values for names, order in halves.items()}
                for names, some in halves.items():
                    zeroed = torch.zeros_like(self._matrix(names[-1]))
                    zeroed[:, some] = self._matrix(names[-1])[:, some]
                    change(names[-1], zeroed)
                reference = self._tried()
                for names, some in halves.items():
                    change(names[-1], self._matrix(names[-1])[:, some])
                    for name in names[:-1]:
                        bias = self._bias(name)
                        change(name, self._matrix(name)[some], None if bias is None else bias.data[some])
            for coupling in couplings:
                if coupling.kind in ("query_key", *ROTARY):
                    self._turn_query_key(coupling, change)
                elif coupling.kind == "value_output":
                    self._turn_value_output(coupling, change)
            after = self._tried()
        if reference is None or after is None:
            return False
        scale = float(reference.abs().max())
        # Something must have been there to be changed.
        return scale > 0 and bool(((after - reference).abs() <= TOLERANCE * scale).all())

    def _turn_query_key(self, coupling: Coupling, change: Any) -> None:
        query, key = coupling.weights
        maps, outer = self._maps(coupling, self.rows(key))
        bias = self._bias(query)
        change(query, _per_head(outer, self._matrix(query)), None if bias is None else _per_head(outer, bias.data))
        # A key's bias adds the same to all scores of a query, unless positions turn it.
        dropped = self._bias(key)
        if dropped is not None:
            dropped = _per_head(maps, dropped.data) if coupling.kind in ROTARY else torch.zeros_like(dropped)
        change(key, _per_head(maps, self._matrix(key)), dropped)

    def _turn_value_output(self, coupling: Coupling, change: Any) -> None:
        value, output = coupling.weights
        maps, outer = self._maps(coupling, self.rows(value))
        before, after = self._bias(value), self._bias(output)
        turned = _per_head(outer, self._matrix(output).T).T
        if before is None or after is None:
            change(
                value, _per_head(maps, self._matrix(value)), None if before is None else _per_head(maps, before.data)
            )
            change(output, turned)
            return
        # Rows of attention sum to one, so that the bias of the values can go to the output.
        repeated = (
            before.data.reshape(coupling.kv_heads, -1)
            .repeat_interleave(coupling.heads // coupling.kv_heads, 0)
            .reshape(-1)
        )
        change(value, _per_head(maps, self._matrix(value)), torch.zeros_like(before))
        change(output, turned, after.data + self._matrix(output) @ repeated)

    def _maps(self, coupling: Coupling, rows: int) -> tuple[Tensor, Tensor]:
        """Random maps that are neither rotations nor scales, and safely invertible: one for each key and value head,
        and what undoes it for each query head."""
        heads, width = coupling.kv_heads, rows // coupling.kv_heads
        if coupling.kind in ROTARY:
            maps = self._pair_maps(coupling, heads, width)
            return maps, torch.linalg.inv(maps).transpose(1, 2).repeat_interleave(coupling.heads // heads, 0)
        turns = torch.linalg.qr(torch.randn(heads, width, width, generator=self.generator))[0]
        scales = torch.linspace(0.5, 2.0, width)[torch.randperm(width, generator=self.generator)]
        maps = turns * scales @ torch.linalg.qr(torch.randn(heads, width, width, generator=self.generator))[0]
        return maps, torch.linalg.inv(maps).transpose(1, 2).repeat_interleave(coupling.heads // heads, 0)

    def _pair_maps(self, coupling: Coupling, heads: int, width: int) -> Tensor:
        """A turn and a scale of each pair of channels, which turns by positions do not notice."""
        pairs = torch.from_numpy(pairs_of(coupling.kind, width))
        size = torch.linspace(0.5, 2.0, len(pairs))[torch.randperm(len(pairs), generator=self.generator)]
        angle = 6.28 * torch.rand(heads, len(pairs), generator=self.generator)
        maps, (first, second) = torch.zeros(heads, width, width), pairs.T
        maps[:, first, first] = maps[:, second, second] = size * angle.cos()
        maps[:, second, first] = size * angle.sin()
        maps[:, first, second] = -size * angle.sin()
        return maps

    def _layer(self, name: str) -> nn.Module:
        return self.module.get_submodule(self.weights[name].layers[0].name)

    def _bias(self, name: str) -> nn.Parameter | None:
        bias = getattr(self._layer(name), "bias", None)
        return bias if isinstance(bias, nn.Parameter) else None

    def _matrix(self, name: str) -> Tensor:
        """The numbers of a weight as outputs x inputs."""
        stored = self._originals.get(name, self.module.get_parameter(name).data)
        return stored if self.weights[name].view.stored == "rows cols" else stored.T

    _originals: Mapping[str, Tensor] = {}

    @contextmanager
    def _changing(self) -> Iterator[Any]:
        """A function that gives a weight, and its layer's bias, other numbers until the block ends."""
        before: list[tuple[nn.Module, str, Tensor]] = []
        originals: dict[str, Tensor] = {}
        widths: list[tuple[nn.Module, str, Any]] = []
        self._originals = originals

        def change(name: str, matrix: Tensor, bias: Tensor | None = None) -> None:
            layer, parameter = self._layer(name), self.module.get_parameter(name)
            before.append((layer, "weight", parameter.data))
            originals.setdefault(name, parameter.data)
            if hasattr(layer, "nf"):
                # transformers' Conv1D shapes its output by a number of its own.
                widths.append((layer, "nf", layer.nf))
                layer.__dict__["nf"] = matrix.shape[0]
            stored = matrix if self.weights[name].view.stored == "rows cols" else matrix.T
            parameter.data = stored.contiguous()
            own = self._bias(name)
            if bias is not None and own is not None:
                before.append((layer, "bias", own.data))
                own.data = bias.contiguous()

        try:
            yield change
        finally:
            for layer, key, data in reversed(before):
                getattr(layer, key).data = data
            for layer, key, number in reversed(widths):
                layer.__dict__[key] = number
            self._originals = {}

    def _run(self) -> Tensor:
        with torch.no_grad():
            outputs = call(self.signature, self.module, self.feed)
        if not self.scales:
            self.scales = {name: y.float().abs().max().clamp_min(1e-30) for name, y in outputs.items()}
        # All outputs as one row of numbers of one size, since each of them has to stay as it is.
        return torch.cat([y.flatten().float() / self.scales[name] for name, y in outputs.items()])

    def _tried(self) -> Tensor | None:
        try:
            return self._run()
        except Exception:
            # Code that insists on its widths.
            return None


def _per_head(maps: Tensor, numbers: Tensor) -> Tensor:
    """The rows of each head, multiplied by the head's own map."""
    parts = numbers.reshape(len(maps), maps.shape[2], -1)
    return (maps @ parts).reshape(-1, *numbers.shape[1:])
