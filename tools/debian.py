"""Debian packages unpacked into a folder: no root, and nothing outside the folder changes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def call(*command: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """What a command prints; ends with its last words if it fails."""
    import os

    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **(environment or {})}
        )
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not here; this needs Debian or Ubuntu")
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:3]))} failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def mirror() -> str:
    """The Debian mirror that this machine uses."""
    sources = [*Path("/etc/apt/sources.list.d").glob("*.sources"), Path("/etc/apt/sources.list")]
    for path in sources:
        if path.is_file():
            found = re.search(r"^(?:URIs:\s*|deb\s+(?:\[[^]]*\]\s+)?)(https?://\S+)", path.read_text(), re.MULTILINE)
            if found and "security" not in found[1]:
                return found[1]
    return "http://deb.debian.org/debian"


def fetch(
    folder: Path, architecture: str, release: str, packages: tuple[str, ...], root: Path, needed: bool = True
) -> None:
    """Unpack some Debian packages, and all that they need if that is asked for, by a state of apt's own."""
    for part in ("state/lists/partial", "cache/archives/partial", "debs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    signed = f" signed-by={KEYS}" if KEYS.is_file() else ""
    (folder / "sources.list").write_text(f"deb [arch={architecture}{signed}] {mirror()} {release} main\n")
    (folder / "apt.conf").write_text(
        f'APT::Architecture "{architecture}"; APT::Architectures {{"{architecture}";}};\n'
        f'Dir::State "{folder}/state"; Dir::State::status "{folder}/state/status"; Dir::Cache "{folder}/cache";\n'
        f'Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Etc::sourceparts "/nonexistent";\n'
        'APT::Install-Recommends "false"; APT::Sandbox::User "";\n'
    )
    environment = {"APT_CONFIG": str(folder / "apt.conf")}
    call("apt-get", "update", "-q", environment=environment)
    names = packages
    if needed:
        listed = call("apt-get", "install", "--print-uris", "-y", *packages, environment=environment)
        names = tuple(re.findall(r"^'\S+' ([^_\s]+)_", listed, re.MULTILINE))
    call("apt-get", "download", *names, cwd=folder / "debs", environment=environment)
    for package in (folder / "debs").glob("*.deb"):
        call("dpkg-deb", "-x", package, root)
