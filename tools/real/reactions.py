"""Reactions of organic chemistry: common building blocks, joined by templates; as SMILES without atom maps."""

from __future__ import annotations

import random
from functools import cache
from itertools import product
from typing import Any

ACIDS = (
    "CC(=O)O OC(=O)c1ccccc1 OC(=O)C1CCCC1 OC(=O)c1ccc(F)cc1 OC(=O)c1ccc(C)cc1 OC(=O)Cc1ccccc1 OC(=O)c1cccnc1 OC(=O)CCC "
    "OC(=O)c1ccsc1 OC(=O)c1ccc(OC)cc1 OC(=O)CCc1ccccc1 CC(C)(C)OC(=O)NCC(=O)O OC(=O)c1ccc(Br)cc1 OC(=O)C=Cc1ccco1 "
    "OC(=O)c1cc2ccccc2[nH]1 OC(=O)COc1ccccc1 OC(=O)c1ccc(C#N)cc1 OC(=O)C(C)(C)C"
)
AMINES = (
    "NCCC NCc1ccccc1 Nc1ccccc1 C1CCCN1 C1COCCN1 CN1CCNCC1 NC1CCCC1 Nc1ccc(Cl)cc1 NCCOC NC1CC1 Nc1ccc(OC)cc1 "
    "CNCc1ccccc1 NCc1cccnc1 COC(=O)C(N)Cc1ccccc1 N1CCC(O)CC1 CC(C)(C)OC(=O)N1CCNCC1 NCc1cccs1 NCCc1ccccc1 Nc1ccncc1"
)
HALIDES = (
    "Brc1ccccc1 Brc1cccnc1 Brc1ccc(C)cc1 Brc1ccc(C(=O)OC)cc1 Ic1ccc(OC)cc1 Brc1ccc(C#N)cc1 Brc1cncnc1 Brc1ccc(C=O)cc1 "
    "Brc1ccc2ccccc2c1 Brc1ccc(F)cc1N Brc1ccsc1 Brc1ccc(C(F)(F)F)cc1"
)
BORONS = (
    "OB(O)c1ccccc1 OB(O)c1ccc(C)cc1 OB(O)c1ccc(F)cc1 OB(O)c1cccnc1 OB(O)c1ccsc1 OB(O)c1cccc(OC)c1 OB(O)C1CC1 "
    "CC1(C)OB(OC1(C)C)c1cnn(C)c1"
)
PHENOLS = "Oc1ccccc1 Oc1ccc(F)cc1 Oc1ccc(C=O)cc1 Oc1ccc(C(=O)OC)cc1 Oc1cccnc1 Oc1ccc2ccccc2c1 Oc1ccc(C#N)cc1"
ALKYLS = "BrCc1ccccc1 CI CCBr BrCC(=O)OC BrCC=C ClCCN1CCCC1 BrCC1CC1 ClCC#N BrCCCO"
CARBONYLS = "O=Cc1ccccc1 O=Cc1cccnc1 O=CC(C)C O=Cc1ccc(F)cc1 O=C1CCCC1 O=Cc1ccsc1 O=C1CCOCC1 CC(=O)c1ccccc1"
SULFONYLS = "CS(=O)(=O)Cl O=S(=O)(Cl)c1ccccc1 Cc1ccc(cc1)S(=O)(=O)Cl O=S(=O)(Cl)C1CC1"
TEMPLATES = (
    ("[C:1](=[O:2])[OX2H1].[NX3;H1,H2;!$(NC=O):3]>>[C:1](=[O:2])[N:3]", ACIDS, AMINES),
    ("[c:1][Br,I].[#6:2]B([O,o])[O,o]>>[c:1][#6:2]", HALIDES, BORONS),
    ("[c:1][OX2H1:2].[CX4:3][Br,I,Cl]>>[c:1][O:2][C:3]", PHENOLS, ALKYLS),
    ("[CX3:1]=[OX1].[NX3;H1,H2;!$(NC=O):2]>>[C:1][N:2]", CARBONYLS, AMINES),
    ("[S:1](=[O:2])(=[O:3])Cl.[NX3;H1,H2;!$(NC=O):4]>>[S:1](=[O:2])(=[O:3])[N:4]", SULFONYLS, AMINES),
)
"""Amides, couplings of aryls, ethers, amines and sulfonamides."""


@cache
def reactions() -> tuple[str, ...]:
    """All of them, in random order; `site` must have RDKit (`fetch.importable`)."""
    found: list[str] = []
    for template, firsts, seconds in TEMPLATES:
        found += [text for a, b in product(firsts.split(), seconds.split()) if (text := reaction(template, a, b))]
    random.Random(0).shuffle(found)
    return tuple(dict.fromkeys(found))


def reaction(template: str, first: str, second: str) -> str | None:
    """Of two molecules; None where the template does not fit them."""
    chem, rules = rdkit()
    molecules = [chem.MolFromSmiles(smiles) for smiles in (first, second)]
    products = rules.ReactionFromSmarts(template).RunReactants(molecules)
    if not products or chem.SanitizeMol(products[0][0], catchErrors=True):
        return None
    return ".".join(map(chem.MolToSmiles, molecules)) + ">>" + str(chem.MolToSmiles(products[0][0]))


@cache
def rdkit() -> tuple[Any, Any]:
    """RDKit's molecules and its reactions, quiet."""
    from rdkit import Chem, RDLogger  # pyright: ignore[reportMissingImports]
    from rdkit.Chem import rdChemReactions  # pyright: ignore[reportMissingImports]

    RDLogger.DisableLog("rdApp.*")
    return Chem, rdChemReactions
