"""What a folder run has done, so that a run that was killed goes on where it stopped.

The journal is a file of JSON lines beside the results, there only while a run is unfinished or photos failed.
A line is written before its result is, with the result's hash: whenever the process dies, the file that lies
there is the promised one, or the photo is restored again. Nothing in a journal is trusted beyond that.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from unirestorer.files import atomic_write, sha256, sha256_of

NAME = ".unirestorer-run.jsonl"


class Journal:
    """The journal of the results in `folder`, made with these `settings`, JSON data.

    Raises ValueError while another process keeps this folder's journal, and OSError.
    """

    def __init__(self, folder: Path, settings: list[Any]) -> None:
        self.folder, self.path = folder, folder / NAME
        self._settings = settings
        self._token = sha256(os.fsencode(folder.resolve()))[:16]  # one for all runs: see `atomic_write`
        self._entries: dict[str, dict[str, Any]] = {}  # by key
        self._file = self._open() if self.path.exists() else None

    def finished(self, photo: Path, target: Path) -> dict[str, Any] | None:
        """The entry of a photo whose result is whole and was made of it by these settings, else None."""
        with contextlib.suppress(OSError):
            return self._entries.get(self._key(sha256_of(photo), target, sha256_of(target)))
        return None

    def write(self, photo_sha256: str, target: Path, data: bytes, entry: dict[str, Any]) -> None:
        """Note and write one result, the bytes `data`; `photo_sha256` is of the file that it was made of."""
        self._file = self._file or self._open()
        line = {"key": self._key(photo_sha256, target, sha256(data)), "entry": entry}
        self._file.write(f"{json.dumps(line)}\n".encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        atomic_write(target, data, self._token)

    def close(self, *, complete: bool) -> None:
        """End the run; a complete one leaves no journal."""
        if self._file is not None:
            if complete:
                self.path.unlink(missing_ok=True)
            self._file.close()

    def _key(self, photo_sha256: str, target: Path, result_sha256: str) -> str:
        name = target.relative_to(self.folder).as_posix()
        parts = [photo_sha256, name, result_sha256, self._settings]
        return sha256(json.dumps(parts, sort_keys=True).encode())

    def _open(self) -> BinaryIO:
        """Lock and read the journal, or start it; what a killed run left of a line is no line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+b")  # noqa: SIM115 (it stays open: closing it unlocks it)
        if not _lock(file):
            file.close()
            raise ValueError(f"another run writes to {self.folder}: wait for it, or choose another folder")
        file.seek(0)
        for line in file.read().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                row = json.loads(line)
                self._entries[row["key"]] = row["entry"]
        file.write(b"\n")  # the last line may have been cut
        return file


def _lock(file: BinaryIO) -> bool:
    """False when another process holds the lock; where there are no locks, nobody can."""
    with contextlib.suppress(ImportError, OSError):  # Windows; some network file systems
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
