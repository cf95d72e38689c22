"""`analysis.json` (figures for people) and `analysis.safetensors` (spectra, error curves and Grams)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lowrank.artifacts.directions import DIRECTIONS_FOLDER, StoredDirections
from lowrank.artifacts.files import linked, read_json, read_tensors, staged, write_json, write_tensors
from lowrank.artifacts.grams import GRAMS_FOLDER, StoredGrams, facts_of, gram_of, triangle_of
from lowrank.artifacts.journal import Codec, Piece
from lowrank.artifacts.outside import is_plain, named_in
from lowrank.core.analysis import Analysis, Context, CouplingAnalysis, Folds, Measured, WeightAnalysis
from lowrank.core.distance import OutputKind
from lowrank.core.forecast import Foretold
from lowrank.core.structures import structures
from lowrank.core.truncation.spectrum import Spectrum
from lowrank.core.verdict import verdict
from lowrank.core.weight import Coupling, Group, Layer, Skip, View, Weight
from lowrank.errors import ArtifactError

ANALYSIS_FILE = "analysis.json"
TENSOR_FILE = "analysis.safetensors"
ANALYSIS_FILES = (ANALYSIS_FILE, TENSOR_FILE, GRAMS_FOLDER, DIRECTIONS_FOLDER)
STORED = "files"
"""What `grams` holds in analysis.json where they are files of their own; no weight is called so without a dot."""
ENERGIES = (0.90, 0.95, 0.99)


def save_analysis(analysis: Analysis, folder: Path) -> None:
    """Write both files, whole or not at all.

    Raises:
        ArtifactError: if they cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for record in analysis.weights:
        tensors |= _arrays(record)
    of_couplings, couplings = _pack_couplings(analysis.couplings)
    tensors |= of_couplings
    for name, curvature in analysis.curvatures.items():
        tensors[f"{name}:curvature"] = curvature
    grams: Mapping[str, Any]
    if isinstance(analysis.grams, StoredGrams):
        grams = {STORED: dict(analysis.grams.files)}
    else:
        packed, grams = _pack_grams(analysis.grams)
        tensors |= packed
    contexts = [asdict(context) for context in analysis.contexts]
    with staged(folder, owned=ANALYSIS_FILES) as stage:
        if isinstance(analysis.grams, StoredGrams):
            # Linked: they are as large as the model, and stay where they are until all is in place.
            shutil.copytree(analysis.grams.folder, stage / GRAMS_FOLDER, copy_function=linked)
        if isinstance(analysis.leading, StoredDirections) and analysis.leading.folder.exists():
            shutil.copytree(analysis.leading.folder, stage / DIRECTIONS_FOLDER, copy_function=linked)
        write_tensors(stage / TENSOR_FILE, tensors, {"analysis": analysis.fingerprint})
        write_json(
            stage / ANALYSIS_FILE,
            "analysis",
            # "bonds" is what files call couplings since version 0.1.0.
            {**figures(analysis), "bonds": couplings, "contexts": contexts, "grams": grams},
        )


def _arrays(record: WeightAnalysis) -> dict[str, NDArray[Any]]:
    """The spectra and curves of one weight, by the names that they have in the file."""
    arrays = {
        "plain": record.plain.values,
        "activation": None if record.activation is None else record.activation.values,
        "heldout": record.heldout,
        **record.curves,
    }
    return {f"{record.weight.name}:{kind}": values for kind, values in arrays.items() if values is not None}


def _pack_grams(folds: Mapping[str, Folds]) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, Any]]]:
    """Moments as lower triangles, those that weights share once, and what else is known of each."""
    tensors: dict[str, NDArray[Any]] = {}
    grams: dict[str, dict[str, Any]] = {}
    owners: dict[int, str] = {}
    for name, each in folds.items():
        owner = owners.setdefault(id(each), name)
        if owner != name:
            grams[name] = {"same_as": owner}
            continue
        grams[name] = {}
        for fold, gram in (("fit", each.fit), ("held", each.heldout)):
            if gram.total is not None:
                tensors[f"{name}:total:{fold}"] = gram.total
            tensors[f"{name}:gram:{fold}"] = triangle_of(gram)
            grams[name][fold] = facts_of(gram)
    return tensors, grams


def _unpack_grams(piece: Piece) -> dict[str, Folds]:
    tensors, entries = piece
    grams: dict[str, Folds] = {}
    for name, entry in entries.items():
        grams[name] = grams[entry["same_as"]] if "same_as" in entry else _read_folds(name, entry, tensors)
    return grams


def _pack_couplings(records: Sequence[CouplingAnalysis]) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
    tensors: dict[str, NDArray[Any]] = {}
    couplings: list[dict[str, Any]] = []
    for number, coupling in enumerate(records):
        tensors[f"bond:{number}:ranks"], tensors[f"bond:{number}:errors"] = coupling.ranks, coupling.errors
        if coupling.order is not None:
            tensors[f"bond:{number}:order"] = coupling.order
        assert coupling.group.coupling is not None
        couplings.append(
            {"structure": coupling.structure, **asdict(coupling.group.coupling), "measured": coupling.measured}
        )
    return tensors, couplings


def read_in(folder: Path, analysis: Analysis) -> Analysis:
    """An analysis that was saved to a folder, with the moments and directions that it keeps on disk read from there."""
    grams, leading = analysis.grams, analysis.leading
    if isinstance(grams, StoredGrams):
        grams = StoredGrams(folder / GRAMS_FOLDER, grams.files)
    if isinstance(leading, StoredDirections):
        leading = replace(leading, folder=folder / DIRECTIONS_FOLDER)
    return replace(analysis, grams=grams, leading=leading)


def figures(analysis: Analysis, spectra: bool = False) -> dict[str, Any]:
    """Everything about an analysis that a person or a script may want to read.

    Args:
        analysis: the analysis.
        spectra: include all singular values.
    """
    return {
        "fingerprint": analysis.fingerprint,
        "verdict": verdict(analysis),
        "forecast": [asdict(point) for point in analysis.forecast],
        "notes": list(analysis.notes),
        "source": dict(analysis.source),
        "settings": dict(analysis.settings),
        "targeted_params": analysis.dense_params,
        "weights": [_weight_figures(record, spectra) for record in analysis.weights],
        "skipped": [asdict(skip) for skip in analysis.skips],
    }


def _weight_figures(record: WeightAnalysis, spectra: bool) -> dict[str, Any]:
    weight = record.weight
    return {
        "name": weight.name,
        "layers": [asdict(layer) for layer in weight.layers],
        "view": asdict(weight.view),
        "spatial_view": weight.spatial and asdict(weight.spatial),
        "stack": weight.stack,
        "role": weight.role,
        "shape": list(weight.shape),
        "dtype": weight.dtype,
        "params": weight.params,
        "break_even_rank": record.break_even,
        "metric": "activation" if record.activation else "plain",
        "heldout": record.heldout is not None,
        "sensitivity": record.sensitivity,
        "measured": record.measured,
        "rounding": dict(record.rounding),
        "error_at_break_even": float(np.sqrt(record.error_curve[record.break_even])),
        "plain": _spectrum_figures(record.plain, record.break_even, spectra),
        "activation": record.activation and _spectrum_figures(record.activation, record.break_even, spectra),
    }


def _spectrum_figures(spectrum: Spectrum, break_even: int, spectra: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "largest": float(spectrum.values[0]),
        "smallest": float(spectrum.values[-1]),
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
        "rank_at_energy": {f"{energy:.2f}": spectrum.rank_at_energy(energy) for energy in ENERGIES},
        "error_at_break_even": spectrum.relative_error(break_even),
    }
    if spectra:
        figures["singular_values"] = spectrum.values.tolist()
    return figures


def load_analysis(folder: Path) -> Analysis:
    """What `save_analysis` wrote.

    Raises:
        ArtifactError: if a file is missing or damaged, or the two do not belong together.
    """
    content = read_json(folder / ANALYSIS_FILE, "analysis")
    tensors, metadata = read_tensors(folder / TENSOR_FILE)
    if metadata.get("analysis") != content.get("fingerprint"):
        raise ArtifactError(
            f"{folder / ANALYSIS_FILE} is of the analysis {content.get('fingerprint')}, {TENSOR_FILE} beside it of "
            f"{metadata.get('analysis')}; run `lowrank analyze MODEL` again"
        )
    try:
        grams: Mapping[str, Folds]
        if STORED in content["grams"]:
            grams = StoredGrams(folder / GRAMS_FOLDER, _read_files(content["grams"][STORED]))
        else:
            grams = _unpack_grams((tensors, content["grams"]))
        weights = tuple(_unpack_record((tensors, entry)) for entry in content["weights"])
        if not weights or len({r.weight.name for r in weights}) < len(weights):
            raise ValueError("its weights are missing or named twice")
        names = [*(record.weight.name for record in weights), *(skip["name"] for skip in content["skipped"])]
        if not all(isinstance(name, str) and is_plain(name) for name in names):
            raise ValueError("a name in it cannot be printed")
        if not isinstance(content["source"], dict) or not isinstance(content["settings"], dict):
            raise ValueError("source and settings must be objects")
        return Analysis(
            weights=weights,
            skips=tuple(Skip(s["name"], tuple(s["shape"]), s["reason"]) for s in content["skipped"]),
            couplings=tuple(_unpack_couplings((tensors, content["bonds"]))),
            contexts=tuple(_read_context(entry, weights) for entry in content["contexts"]),
            forecast=_read_forecast(content.get("forecast", ())),
            grams=grams,
            leading=StoredDirections(folder / DIRECTIONS_FOLDER, str(content["source"].get("fingerprint"))),
            curvatures={n.removesuffix(":curvature"): t for n, t in tensors.items() if n.endswith(":curvature")},
            source=content["source"],
            settings=content["settings"],
            fingerprint=content["fingerprint"],
            notes=tuple(content["notes"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ArtifactError(
            f"{folder / ANALYSIS_FILE} and {TENSOR_FILE} beside it do not hold a whole analysis "
            f"({type(error).__name__}: {error}); "
            "run `lowrank analyze MODEL` again"
        ) from None


def _read_files(files: Any) -> dict[str, str]:
    by_name = {str(name): str(file) for name, file in dict(files).items()}
    if not all(Path(file).name == file and named_in(Path(), file) for file in by_name.values()):
        raise ValueError("a file of Grams lies outside of its folder")
    return by_name


def _unpack_record(piece: Piece) -> WeightAnalysis:
    tensors, entry = piece
    name, (rows, cols) = entry["name"], entry["shape"]
    layers = tuple(Layer(layer["name"], layer["kind"], layer.get("applied", 1)) for layer in entry["layers"])
    spatial = entry["spatial_view"] and _read_view(entry["spatial_view"])
    view, stack = _read_view(entry["view"]), entry["stack"]
    weight = Weight(name, rows, cols, entry["dtype"], entry["role"], layers, view, stack, spatial)
    activation = tensors.get(f"{name}:activation")
    record = WeightAnalysis(
        weight,
        Spectrum(tensors[f"{name}:plain"]),
        None if activation is None else Spectrum(activation),
        tensors.get(f"{name}:heldout"),
        _read_measured(entry["measured"]),
        {s.name: tensors[f"{name}:{s.name}"] for s in structures() if f"{name}:{s.name}" in tensors},
        _read_rounding(entry["rounding"]),
    )
    arrays = [record.plain.values, record.error_curve, *([] if activation is None else [activation])]
    arrays += record.curves.values()
    if not all(np.isfinite(a).all() and (a >= 0).all() for a in arrays):
        raise ValueError(f"the figures of {name} are not finite")
    if len(record.plain.values) != weight.full_rank or len(record.error_curve) != weight.full_rank + 1:
        raise ValueError(f"the spectrum of {name} has the wrong length")
    return record


def _unpack_couplings(piece: Piece) -> list[CouplingAnalysis]:
    tensors, entries = piece
    return [_read_coupling(number, entry, tensors) for number, entry in enumerate(entries)]


def _read_coupling(number: int, entry: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> CouplingAnalysis:
    coupling = Coupling(entry["kind"], tuple(map(str, entry["weights"])), int(entry["heads"]), int(entry["kv_heads"]))
    ranks, errors = tensors[f"bond:{number}:ranks"], tensors[f"bond:{number}:errors"]
    if len(ranks) != len(errors) or not np.isfinite(errors).all() or (errors < 0).any():
        raise ValueError(f"the errors of {', '.join(coupling.weights)} are not finite")
    order = tensors.get(f"bond:{number}:order")
    return CouplingAnalysis(
        Group.of(coupling), entry["structure"], ranks, errors, order, _read_measured(entry["measured"])
    )


def _read_context(entry: Mapping[str, Any], weights: Sequence[WeightAnalysis]) -> Context:
    factors = {record.weight.name: float(entry["factors"][record.weight.name]) for record in weights}
    if not all(0 < factor < np.inf for factor in factors.values()) or not 0 < entry["keep"] <= 1:
        raise ValueError("the factors of a context are not positive")
    return Context(float(entry["keep"]), factors)


def _read_forecast(entries: Sequence[Mapping[str, Any]]) -> tuple[Foretold, ...]:
    points = tuple(map(_read_foretold, entries))
    if any(point.fidelity.keys() != points[0].fidelity.keys() or point.kind != points[0].kind for point in points):
        raise ValueError("what is foretold of one budget is not of the same sets as that of another")
    return points


def _read_foretold(entry: Mapping[str, Any]) -> Foretold:
    fidelity, kind = {str(name): float(value) for name, value in dict(entry["fidelity"]).items()}, entry["kind"]
    if not fidelity or not all(0 <= value <= 1 for value in fidelity.values()) or not 0 < entry["keep"] <= 1:
        raise ValueError("what is foretold is not between 0 and 1")
    if kind not in get_args(OutputKind):
        raise ValueError(f"what is foretold is of no kind of output: {str(kind)[:40]!r}")
    return Foretold(float(entry["keep"]), fidelity, kind)


def _read_rounding(errors: Any) -> dict[str, float]:
    by_format = {str(name): float(error) for name, error in dict(errors).items()}
    if not all(0 <= error < np.inf for error in by_format.values()):
        raise ValueError("an error of rounding is not a finite number")
    return by_format


def _read_measured(pairs: Any) -> Measured:
    figures = tuple((float(own), float(lost)) for own, lost in pairs)
    if not all(0 <= number < np.inf for pair in figures for number in pair):
        raise ValueError("what was measured is not finite")
    return figures


def _read_view(entry: Mapping[str, Any]) -> View:
    return View(str(entry["stored"]), str(entry["seen"]), tuple((str(k), int(n)) for k, n in entry["sizes"]))


def _read_folds(name: str, entry: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Folds:
    return Folds(
        *(
            gram_of(entry[fold], tensors[f"{name}:gram:{fold}"], tensors.get(f"{name}:total:{fold}"))
            for fold in ("fit", "held")
        )
    )


def _pack_record(record: WeightAnalysis) -> Piece:
    return _arrays(record), _weight_figures(record, spectra=False)


GRAMS: Codec[Mapping[str, Folds]] = Codec(_pack_grams, _unpack_grams)
"""For all Grams of a model: moments, and what else is known of each."""
COUPLINGS: Codec[Sequence[CouplingAnalysis]] = Codec(_pack_couplings, _unpack_couplings)
"""For what several structures make of a coupling: arrays by number, and what the couplings are."""
RECORD: Codec[WeightAnalysis] = Codec(_pack_record, _unpack_record)
"""For the analysis of one weight."""
