"""`lowrank doctor`: what is installed, what is missing, which versions conflict, and whether the core works."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from lowrank.errors import first_line
from lowrank.machine import cores, processor
from lowrank.version import __version__

CORE = ("numpy", "scipy", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "safetensors", "transformers")
"""Packages without which nothing much works; they are imported to see whether they can be."""
NEIGHBOURS = ("optimum", "optimum-onnx", "sentence-transformers", "peft", "olive-ai", "mteb", "lm-eval", "torchvision")
"""Packages that people have beside this one, and that ask for versions of the same things."""
MODULES = {"onnx-ir": "onnx_ir"}
FAST = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX int8",
    "asimddp": "dot products (asimddp)", "i8mm": "int8 matrix products (i8mm)", "sve": "SVE",
}  # fmt: skip
"""What decides how fast a processor multiplies, by the names that Linux has for it."""
INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
CPU_INDEX = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def examine() -> dict[str, Any]:
    """The whole examination as JSON; `works` says whether the core works, and `why` what is wrong if it does not."""
    packages, broken = _packages()
    extras, advice = _extras()
    check = _try_core() if not broken else {"works": False, "why": "; ".join(broken)}
    advice = [*_advice(packages), *advice, *_conflicts()]
    return {
        "lowrank": {"version": __version__, "python": platform.python_version(), "place": sys.prefix},
        "machine": _machine(),
        "packages": packages,
        "threads": _threads(),
        "extras": extras,
        "self-check": check,
        "advice": advice,
        "works": check["works"],
        "why": check.get("why"),
    }


def _packages() -> tuple[dict[str, Any], list[str]]:
    """Versions of what the core needs, and a line for each that is missing or cannot be imported."""
    versions: dict[str, Any] = {}
    broken: list[str] = []
    for name in CORE:
        versions[name] = _version(name) or "missing"
        if versions[name] == "missing":
            broken.append(f"{name} is missing: pip install {name}")
            continue
        try:
            import_module(MODULES.get(name, name))
        except (Exception, SystemExit) as error:
            # A package that is there and broken can end with anything.
            versions[name] += " (cannot be imported)"
            broken.append(
                f"{name} {version(name)} cannot be imported ({type(error).__name__}: {first_line(error)}): "
                f"pip install --force-reinstall {name}"
            )
    return versions, broken


def _extras() -> tuple[dict[str, str], list[str]]:
    """Each extra and whether it is there; for those that are not, the line that installs it."""
    states: dict[str, str] = {}
    try:
        lines = requires("lowrank") or []
    except PackageNotFoundError:
        return states, ["lowrank itself is not installed here, but run from its folder: pip install -e ."]
    wanted: dict[str, list[str]] = {}
    for name, extra, _ in _requirements(lines):
        if extra and extra != "dev":
            wanted.setdefault(extra, []).append(name)
    for extra, names in wanted.items():
        missing = [name for name in names if not _version(name)]
        states[extra] = f"lacks {', '.join(missing)}: pip install 'lowrank[{extra}]'" if missing else "installed"
    return states, []


def _requirements(lines: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Names, the extra that asks for them, and versions, from lines of metadata."""
    from packaging.requirements import InvalidRequirement, Requirement

    for line in lines:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        extra = next(
            (part.split("==")[1].strip(" '\"") for part in [str(wanted.marker or "")] if "extra ==" in part), ""
        )
        yield wanted.name, extra, wanted.specifier


def _version(name: str) -> str:
    """The version of an installed package; empty if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _conflicts() -> list[str]:
    """Requirements of this package and its neighbours that what is installed does not meet."""
    conflicts: list[str] = []
    for owner in ("lowrank", *NEIGHBOURS):
        try:
            lines = requires(owner) or []
        except PackageNotFoundError:
            continue
        for name, extra, wanted in _requirements(lines):
            there = _version(name)
            if there and not extra and not wanted.contains(there, prereleases=True):
                conflicts.append(
                    f"{owner} {version(owner)} asks for {name}{wanted}, and {there} is installed: give {owner} an "
                    "environment of its own"
                )
    return conflicts


def _advice(packages: dict[str, Any]) -> list[str]:
    advice: list[str] = []
    torch = str(packages.get("torch", ""))
    if sys.platform == "linux" and platform.machine() == "x86_64" and "+cu" in torch:
        advice.append(f"torch {torch} brings several GB for GPUs; where there is none: {CPU_INDEX}")
    if platform.machine() in ("x86_64", "AMD64", "aarch64", "arm64") and not INT8 & _flags():
        advice.append(
            "this processor has no VNNI or the like, with which int8 gains more speed; files get as small as elsewhere"
        )
    try:
        import onnx

        from lowrank.backends.onnx.opset import OPSET

        newest = onnx.defs.onnx_opset_version()
        if newest < OPSET:
            advice.append(
                f"onnx knows operator sets up to {newest}, and graphs are written in {OPSET}: pip install -U onnx"
            )
    except Exception:
        # Said already, with its reason.
        pass
    return advice


def _flags() -> set[str]:
    """What the processor says that it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as known  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        return set()
    names = {"AVX2": "avx2", "AVX512F": "avx512f", "AVX512_ICL": "avx512_vnni", "ASIMDDP": "asimddp", "SVE": "sve"}
    return {flag for name, flag in names.items() if known.get(name)}


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": processor(),
        "fast": [label for flag, label in FAST.items() if flag in _flags()],
        "cores": cores(),
    }
    try:
        import psutil

        memory = psutil.virtual_memory()
        facts["memory_gb"] = round(memory.total / 1e9, 1)
        facts["memory_left_gb"] = round(memory.available / 1e9, 1)
    except Exception as error:
        facts["memory"] = f"not known ({first_line(error)}): pip install psutil"
    return facts


def _threads() -> dict[str, Any]:
    """Libraries that multiply, with their threads, and where graphs can run."""
    facts: dict[str, Any] = {
        name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ
    }
    try:
        from threadpoolctl import threadpool_info

        for each in threadpool_info():
            name = Path(each["filepath"]).name.split(".so")[0][:40]
            facts[name] = f"{each['internal_api']} {each.get('version') or ''}, {each['num_threads']} threads".replace(
                " ,", ","
            )
    except Exception as error:
        facts["blas"] = f"not known ({first_line(error)}): pip install threadpoolctl"
    try:
        import torch

        facts["torch"] = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        facts["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as error:
        facts["torch"] = f"not known ({first_line(error)})"
    try:
        import onnxruntime

        facts["onnxruntime"] = onnxruntime.get_available_providers()
    except Exception as error:
        facts["onnxruntime"] = f"not known ({first_line(error)})"
    return facts


def _try_core() -> dict[str, Any]:
    """A layer factored, written as ONNX and run: the way that every model goes."""
    begun = time.perf_counter()
    try:
        import numpy as np
        import torch
        from torch import nn

        from lowrank.backends.inputs import Signature
        from lowrank.backends.ort_session import start_session
        from lowrank.backends.torch.open import open_module
        from lowrank.core.structures.base import Replacement
        from lowrank.core.structures.two_factor import TwoFactor
        from lowrank.core.truncation.directions import directions

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            dense = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
        backend = open_module(dense)
        matrix = backend.read("0.weight")
        small = backend.rewrite({"0.weight": Replacement(TwoFactor().name, directions(matrix).truncate(matrix, 16))})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "check.onnx"
            assert isinstance(small.signature, Signature)
            small.write_onnx(path)
            session = start_session(path)
            feed = small.signature.example(2, 3)
            (output,) = session.run(None, dict(feed))
        difference = float(np.abs(output - backend.run(feed)).max())
        if not difference < 1e-4:
            raise ArithmeticError(f"the graph differs from the layer by {difference:.1e}")
    except Exception as error:
        # Whatever is wrong with what is installed comes out here.
        return {
            "works": False,
            "why": f"{type(error).__name__}: {first_line(error)}; reinstall with the versions that are known to work: "
            "pip install -c constraints.txt lowrank",
        }
    return {"works": True, "seconds": round(time.perf_counter() - begun, 2), "difference": difference}
