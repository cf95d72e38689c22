"""chython-rxnmap 2.0 (LGPL-3): says which atom of a product was which of a reactant; takes one reaction at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import lowrank
from lowrank.backends.inputs import Feed
from lowrank.evaluate.graph import open_graph
from real.fetch import importable, unpacked
from real.reactions import rdkit, reactions
from real.subject import Real

PACKAGE = "chython-rxnmap==2.0"
INPUTS = ("atoms", "neighbors", "distances", "roles")
TESTS = 40
TOGETHER = 14
"""Reactions in the one sample of calibration: as many as make some 500 tokens."""
BONDED = 1.75
"""By what chython prefers atoms beside those that are mapped already."""


def subject(folder: Path) -> Real:
    """Calibrated on one long sample, as its graph takes a batch of one only."""
    importable(folder, "rdkit", "chython")
    source = unpacked(folder, PACKAGE) / "chython_rxnmap" / "rxnmap.onnx"
    texts = reactions()
    sides = [text.split(">>") for text in texts[TESTS : TESTS + TOGETHER]]
    calib = folder / "together.npz"
    feed = Reaction(">>".join(".".join(side) for side in zip(*sides, strict=True))).feed
    np.savez(calib, allow_pickle=False, **feed)
    judge = Mappings(texts[:TESTS], source)
    return Real(
        name="chython-rxnmap",
        source=source,
        settings=lowrank.Settings(calib=str(calib)),
        dense=source,
        example=judge.example,
        judge=judge,
    )


class Reaction:
    """One reaction as the model's inputs, and how its output becomes a mapping of atoms."""

    def __init__(self, text: str) -> None:
        """Encode it with chython."""
        from chython.core import read_smiles  # pyright: ignore[reportMissingImports]
        from chython.reactions.attention._assign import side_adjacency  # pyright: ignore[reportMissingImports]
        from chython.reactions.attention._encode import encode_reaction  # pyright: ignore[reportMissingImports]

        molecules = [[read_smiles(smiles) for smiles in side.split(".")] for side in text.split(">>")]
        self._encoded: Any = encode_reaction(*molecules)
        self._bonds = [side_adjacency(side) for side in molecules]
        self._alike = self._classes(text.split(">>")[0])
        self.feed: Feed = {name: getattr(self._encoded, name)[None].astype(np.int64) for name in INPUTS}

    @staticmethod
    def _classes(side: str) -> np.ndarray:
        """Of each atom, the class of those that symmetry makes equal; -1 for no atom."""
        chem, _ = rdkit()
        found: list[int] = []
        for number, smiles in enumerate(side.split(".")):
            ranks = chem.CanonicalRankAtoms(chem.MolFromSmiles(smiles), breakTies=False)
            found += [1000 * number + rank for rank in ranks]
        return np.array([*found, -1])

    def mapped(self, attention: np.ndarray) -> np.ndarray:
        """Of each atom of the product, the class of the reactant's atom that it was."""
        from chython.reactions.attention._assign import greedy_mapping  # pyright: ignore[reportMissingImports]

        there, back = attention[self._encoded.p2r], attention[self._encoded.r2p]
        chosen, _ = greedy_mapping((there + back.T) * self._encoded.equal_atoms, *self._bonds, BONDED)
        return self._alike[chosen]


class Mappings:
    """How often a graph maps atoms as the dense model does."""

    def __init__(self, texts: tuple[str, ...], dense: Path) -> None:
        """Let the dense model map all reactions."""
        self._reactions = [Reaction(text) for text in texts]
        self.example = max((r.feed for r in self._reactions), key=lambda feed: feed["atoms"].size)
        self._dense = self._mapped(dense)

    def _mapped(self, path: Path) -> list[np.ndarray]:
        session = open_graph(path, 2)
        return [reaction.mapped(session.run(None, dict(reaction.feed))[0]) for reaction in self._reactions]

    def __call__(self, path: Path) -> Mapping[str, float]:
        """The share of atoms, and of reactions with all of their atoms."""
        pairs = list(zip(self._mapped(path), self._dense, strict=True))
        return {
            "atoms mapped as dense": float(np.concatenate([a == b for a, b in pairs]).mean()),
            "reactions mapped as dense": float(np.mean([np.array_equal(a, b) for a, b in pairs])),
        }
