"""Which weights of a model are looked at, and a reason for each of the others."""

from __future__ import annotations

from collections.abc import Sequence

from lowrank.backends import Backend
from lowrank.core.match import name_filter
from lowrank.core.weight import TARGETS, Coupling, Group, Skip, Weight
from lowrank.errors import PatternError, UnsupportedModel
from lowrank.pipeline.settings import Settings

COUPLED_INPUTS = 4096
"""Wider inputs of coupled weights get no moment: it would take 128 MB for each fold of each."""

NOT_TARGETED = {
    "projection": "a projection; --targets projections adds it",
    "head": "outside the repeated blocks, so treated as an output head; --targets head adds it",
    "embedding": "an embedding table; --targets embeddings adds it",
    "conv": "a convolution; --targets conv adds it",
}


def targeted(backend: Backend, settings: Settings) -> tuple[tuple[Weight, ...], tuple[Skip, ...]]:
    """The weights that the settings name, and the reason why each other tensor is left out.

    Raises:
        PatternError: if a target or a pattern names nothing.
        UnsupportedModel: if no weight is targeted.
    """
    unknown = [t for t in settings.targets if t not in TARGETS]
    if unknown:
        raise PatternError(f"--targets {unknown[0]}: it can be {', '.join(TARGETS)}, several with commas")
    names = [weight.name for weight in backend.weights] + [skip.name for skip in backend.skips]
    wanted = name_filter(settings.include, settings.exclude, names)
    roles = {role for target in settings.targets for role in TARGETS[target]}
    # A name that is given is asked for, whatever its role.
    asked = bool(settings.include)
    chosen, skips = [], list(backend.skips)
    for weight in backend.weights:
        if not wanted(weight.name):
            skips.append(Skip(weight.name, weight.shape, "left out by --include or --exclude"))
        elif not asked and weight.role not in roles:
            skips.append(Skip(weight.name, weight.shape, NOT_TARGETED[weight.role]))
        elif weight.full_rank < 2:
            skips.append(Skip(weight.name, weight.shape, "a vector: it has rank 1 already"))
        else:
            chosen.append(weight)
    if not chosen:
        raise UnsupportedModel(_nothing(skips))
    return tuple(chosen), tuple(skips)


def _nothing(skips: Sequence[Skip]) -> str:
    why = f"; {skips[0].name} {tuple(skips[0].shape)}: {skips[0].reason}" if skips else ""
    return (
        f"the model has no weight that is targeted and can be factored ({len(skips)} left out{why}); "
        "see --targets and --include"
    )


def targeted_groups(backend: Backend, settings: Settings) -> list[tuple[Group, list[Weight]]]:
    """All that could be decided on, with the weights of each: every targeted weight by itself, and every coupling.

    Raises:
        UnsupportedModel: if no weight is targeted.
    """
    weights, _ = targeted(backend, settings)
    by_name = {weight.name: weight for weight in weights}
    groups = [*(Group(w.name, (w.name,)) for w in weights), *map(Group.of, usable(backend, weights))]
    return [(group, [by_name[name] for name in group.weights]) for group in groups]


def usable(backend: Backend, weights: Sequence[Weight]) -> list[Coupling]:
    """The couplings between targeted weights whose moments are not too wide to keep."""
    targeted = {w.name: w for w in weights}
    return [
        coupling
        for coupling in backend.couplings
        if all(name in targeted and targeted[name].cols <= COUPLED_INPUTS for name in coupling.weights)
    ]
