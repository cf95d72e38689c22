"""Python with onnxruntime for another processor, run by qemu's emulation of single programs: no Docker, no root.

    python tools/arm.py arm64 FOLDER     64 bits, onnxruntime from PyPI
    python tools/arm.py armv7 FOLDER     32 bits, Debian's onnxruntime

Needs Debian or Ubuntu (apt-get, dpkg-deb) with a network, and about a minute; writes into FOLDER alone and prints the
command that runs Python there. Whatever it lacks is named.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from debian import call, fetch

# What onnxruntime asks of a processor it reads from /proc/cpuinfo, and it ends if it finds another kind's. qemu looks
# for the file under its prefix first. The features are those of the processor that is emulated.
ARM64 = """processor\t: 0
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1
"""
ARMV7 = """processor\t: 0
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x0
CPU part\t: 0xc07
CPU revision\t: 3

Hardware\t: emulated
"""


@dataclass(frozen=True)
class Machine:
    """What is emulated, and what is installed on it."""

    debian: str
    """The name of the processor in Debian."""
    release: str
    packages: tuple[str, ...]
    emulator: tuple[str, ...]
    cpuinfo: str
    library: str
    """The folder of shared libraries."""
    wheels: tuple[str, ...] = ()
    """Platforms of PyPI, where it has onnxruntime for this processor."""


MACHINES = {
    "arm64": Machine(
        "arm64",
        "bookworm",
        ("python3", "libstdc++6", "libgomp1", "zlib1g"),
        ("qemu-aarch64-static", "-cpu", "neoverse-n1"),
        ARM64,
        "aarch64-linux-gnu",
        ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"),
    ),
    "armv7": Machine(
        "armhf",
        "trixie",
        ("python3", "python3-onnxruntime", "python3-numpy"),
        ("qemu-arm-static", "-cpu", "max"),
        ARMV7,
        "arm-linux-gnueabihf",
    ),
}


def build(name: str, folder: Path) -> Path:
    """Make the sandbox; the command that runs Python in it."""
    machine, root = MACHINES[name], folder / "root"
    for part in ("proc", "opt/site"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text(machine.cpuinfo)
    emulator = shutil.which(machine.emulator[0])
    if emulator is None:
        own = call("dpkg", "--print-architecture").strip()
        fetch(folder / "host", own, "bookworm", ("qemu-user-static",), folder / "qemu", needed=False)
        emulator = str(folder / "qemu/usr/bin" / machine.emulator[0])
    fetch(folder / "apt", machine.debian, machine.release, machine.packages, root)
    if not (root / "lib").exists():
        # Newer releases have everything in /usr, and a link that no package carries.
        (root / "lib").symlink_to("usr/lib")
    python = next(p for p in sorted((root / "usr/bin").glob("python3.*")) if re.fullmatch(r"python3\.\d+", p.name))
    if machine.wheels:
        version = python.name.removeprefix("python").replace(".", "")
        platforms = [word for platform in machine.wheels for word in ("--platform", platform)]
        picked = ["--python-version", version, "--implementation", "cp", "--abi", f"cp{version}"]
        pip = (sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:")
        call(*pip, *platforms, *picked, "onnxruntime", "numpy", "-d", folder / "wheels")
        for wheel in (folder / "wheels").glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(root / "opt/site")
    paths = [
        f"{root}/usr/lib/{machine.library}",
        *(f"{root}/usr/lib/{machine.library}/{d}" for d in ("blas", "lapack")),
    ]
    settings = {
        "PYTHONHOME": f"{root}/usr",
        "PYTHONPATH": f"{root}/opt/site:{root}/usr/lib/python3/dist-packages",
        "LD_LIBRARY_PATH": ":".join(paths),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    given = " ".join(f"-E {key}={value}" for key, value in settings.items())
    made = folder / "python.new"
    made.write_text(
        f'#!/bin/sh\nexec "{emulator}" {" ".join(machine.emulator[1:])} -L "{root}" {given} "{python}" "$@"\n'
    )
    made.chmod(0o755)
    print(call(made, "-c", "import platform, onnxruntime as o; print(platform.machine(), o.__version__)").strip())
    # The command is there if, and only if, it works.
    return made.rename(folder / "python")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("machine", choices=sorted(MACHINES))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(build(given.machine, given.folder.resolve()))


if __name__ == "__main__":
    main()
