"""AdamW whose steps are relative to the size of what they change, the curve of its rate, and the rates to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lowrank.healing.clock import Span

SMALLEST = 2.0**-10
"""A parameter is taken to be at least this large: those that start at zero must be able to leave it."""
WARM_UP = 0.05
CLIP = 2.0
"""Times the usual norm of the gradients."""


class Diverged(Exception):
    """A loss or a gradient is not a finite number; the message says which."""


class Optimizer:
    """AdamW with one rate for all parameters, as a share of each one's root mean square.

    Factors, pivots, biases and norms differ in size by orders of magnitude, and from model to model; steps relative to
    it make one rate fit all of them (Adafactor, Shazeer and Stern 2018, section 8).

    Args:
        parameters: by name.
        rate: the highest relative step, e.g. 0.01.
        smallest: the size that a parameter is taken to have at least, where it is not `SMALLEST`.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], rate: float, smallest: Mapping[str, float] | None = None
    ) -> None:
        self.rate, self.parameters = rate, dict(parameters)
        groups = [
            {"params": [p], "scale": max(float(rms(p)), (smallest or {}).get(name, SMALLEST))}
            for name, p in parameters.items()
        ]
        self.adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.usual: float | None = None
        """Norm of the gradients, a running mean."""

    def step(self, share: float) -> None:
        """Change the parameters by their gradients, which are cleared.

        Args:
            share: how much of the training is done, 0 to 1.

        Raises:
            Diverged: if a gradient is not finite; some attention kernels give finite outputs for what is not. Nothing
                is changed then.
        """
        rate = self.rate * curve(share)
        for group in self.adam.param_groups:
            group["lr"] = rate * group["scale"]
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), CLIP * self.usual if self.usual else math.inf))
        if not math.isfinite(norm):
            odd = [n for n, p in self.parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
            self.clear()
            raise Diverged(f"the gradient of {odd[0]} is not finite" if odd else "the gradients are not finite")
        self.usual = norm if self.usual is None else 0.9 * self.usual + 0.1 * min(norm, CLIP * self.usual)
        self.adam.step()
        self.clear()

    def clear(self) -> None:
        """Forget the gradients."""
        self.adam.zero_grad()

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The running moments of each parameter's gradient and the size of each parameter, by name."""
        states = {name: self.adam.state[p] for name, p in self.parameters.items() if self.adam.state.get(p)}
        scales = zip(self.parameters, (torch.tensor(group["scale"]) for group in self.adam.param_groups), strict=True)
        return {
            "mean": {name: state["exp_avg"] for name, state in states.items()},
            "square": {name: state["exp_avg_sq"] for name, state in states.items()},
            "scale": dict(scales),
        }

    def restore(self, moments: Mapping[str, Mapping[str, Tensor]], steps: int, usual: float | None) -> None:
        """Take over what `moments` gave after so many steps, and the usual norm of that time."""
        self.usual = usual
        for (name, parameter), group in zip(self.parameters.items(), self.adam.param_groups, strict=True):
            group["scale"] = float(moments["scale"][name])
            if name in moments["mean"]:
                self.adam.state[parameter] = {
                    "step": torch.tensor(float(steps), device=parameter.device),
                    "exp_avg": moments["mean"][name].to(parameter),
                    "exp_avg_sq": moments["square"][name].to(parameter),
                }


def rms(values: Tensor) -> Tensor:
    """The root mean square of a tensor's numbers, in float32."""
    return values.detach().float().square().mean().sqrt()


def curve(share: float) -> float:
    """The learning rate as a share of the highest: it rises in a line from a tenth, then falls along half a cosine.

    Args:
        share: how much of the training is done, 0 to 1.

    Example:
        >>> [round(curve(s), 2) for s in (0.0, 0.025, 0.05, 0.525, 1.0)]
        [0.1, 0.55, 1.0, 0.5, 0.0]
    """
    if share < WARM_UP:
        return 0.1 + 0.9 * share / WARM_UP
    return (1 + math.cos(math.pi * min((share - WARM_UP) / (1 - WARM_UP), 1.0))) / 2


def descend(
    backward: Callable[[Sequence[int]], float],
    steps: Iterator[Sequence[int]],
    optimizer: Optimizer,
    part: Span,
    cost: float = 1.0,
) -> Iterator[float]:
    """Make steps; after each, how much of the part is over.

    Args:
        backward: adds the gradients of a step's batches, and gives their loss.
        steps: the batches of each.
        optimizer: of the parameters.
        part: when to end.
        cost: of a step, in whole steps.

    Raises:
        Diverged: at the first loss or gradient that is no finite number, before the step is made.
    """
    while (share := part.share) < 1:
        loss = backward(next(steps))
        if not math.isfinite(loss):
            optimizer.clear()
            raise Diverged("the loss is not finite")
        optimizer.step(share)
        part.work.count(cost)
        yield part.share


START = 0.004
"""Relative to the size of what is changed."""


def rates() -> Generator[float, float, None]:
    """Three rates to try, a factor of two apart: `START`, twice that, and one further in the better direction.

    It is sent the held-out loss that each of them came to.

    Example:
        >>> asked, tried = rates(), []
        >>> rate = next(asked)
        >>> try:
        ...     while True:
        ...         tried.append(rate)
        ...         rate = asked.send(abs(rate - 0.012))
        ... except StopIteration:
        ...     tried
        [0.004, 0.008, 0.016]
    """
    low = yield START
    high = yield 2 * START
    yield 4 * START if high < low else START / 2


def snapshot(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of their numbers."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def restore_(parameters: Mapping[str, nn.Parameter], known: Mapping[str, Tensor]) -> None:
    """Give them the numbers of a snapshot."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(known[name])


def add_gradients_(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor | None]) -> None:
    """Add what a part of a step gives to the gradients of some parameters."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and parameter.grad is not None:
            parameter.grad.add_(gradient)
        elif gradient is not None:
            # A copy: two parameters may be given one tensor, and gradients are scaled in place. It lies in memory as
            # the parameter does, which the fused optimiser takes for granted.
            parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
