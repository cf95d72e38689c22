"""Location: a folder of files on this machine, or behind a URL that fsspec knows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lowrank.errors import UnsupportedModel, first_line


def is_url(path: object) -> bool:
    """Whether a path names a protocol: `s3://bucket/model`, `hf://organisation/model`."""
    return isinstance(path, str) and "://" in path


@dataclass(frozen=True)
class Location:
    """Where the files of a checkpoint are. It opens them itself, so it can be sent to another process or machine.

    Example:
        >>> Location("s3://bucket/model").is_local
        False
    """

    url: str

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine's file system."""
        return not is_url(self.url)

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UnsupportedModel(
                f"{self.url} cannot be opened ({first_line(error)}); install what its protocol needs, or give a folder"
            ) from None
        return system, root.rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}

    def names(self) -> list[str]:
        """The files in it, without those of its folders.

        Raises:
            UnsupportedModel: if there is no such place.
        """
        try:
            if self.is_local:
                return sorted(entry.name for entry in Path(self.url).iterdir() if entry.is_file())
            system, root = self._remote
            entries = system.ls(root, detail=True)
            return sorted(str(each["name"]).rpartition("/")[2] for each in entries if each["type"] == "file")
        except UnsupportedModel:
            raise
        except Exception as error:
            raise self._unreadable("", error) from None

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            UnsupportedModel: if it is not there.
        """
        try:
            if self.is_local:
                return (Path(self.url) / name).stat().st_size
            system, root = self._remote
            return int(system.size(f"{root}/{name}"))
        except Exception as error:
            raise self._unreadable(name, error) from None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        """Some bytes of a file. They are read and not mapped: what is read once is not to stay in memory.

        Raises:
            UnsupportedModel: if they are not there.
        """
        stop = self.size(name) if stop is None else stop
        content = bytearray(stop - start)
        try:
            if self.is_local:
                with (Path(self.url) / name).open("rb") as stream:
                    stream.seek(start)
                    count = stream.readinto(content)
            else:
                system, root = self._remote
                fetched = system.cat_file(f"{root}/{name}", start=start, end=stop)
                count, content = len(fetched), bytearray(fetched)
        except Exception as error:
            raise self._unreadable(name, error) from None
        if count != stop - start:
            raise UnsupportedModel(f"{self.url}/{name} was cut short while it was read; copy it again")
        return content

    def fingerprint(self, names: list[str]) -> str:
        """What changes when one of some files does: their contents here, what the store says of them elsewhere."""
        if self.is_local:
            from lowrank.artifacts.files import hash_files

            return hash_files([Path(self.url) / name for name in names])
        system, root = self._remote
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name} {self.size(name)} {system.ukey(f'{root}/{name}')}".encode())
        return digest.hexdigest()[:32]

    def fetch(self, names: list[str], folder: Path) -> None:
        """Copy some files to a folder here."""
        for name in names:
            (folder / name).write_bytes(self.read(name))

    def _unreadable(self, name: str, error: Exception) -> UnsupportedModel:
        where = f"{self.url}/{name}" if name else self.url
        return UnsupportedModel(f"{where} cannot be read ({first_line(error)}); check the address and its permissions")
