"""What a folder run has done, so that a run that was killed goes on where it stopped.

The journal is a file of JSON lines beside the results, there only while a run is unfinished or photos failed.
A line is written before its result is, with the result's hash: whenever the process dies, the file that lies
there is the promised one, or the photo is restored again. Nothing in a journal is trusted beyond that.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from unirestorer.files import atomic_write, sha256, sha256_of, temporary_beside

NAME = ".unirestorer-run.jsonl"


class Journal:
    """The journal of the results `targets` in `folder`, made with `settings`, any JSON data.

    Raises ValueError while another process keeps this folder's journal, and OSError.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], targets: Iterable[Path]) -> None:
        self.folder, self.path = folder, folder / NAME
        self._settings = json.dumps(settings, sort_keys=True)
        self._targets = tuple(targets)
        self._file: BinaryIO | None = None
        self._token = secrets.token_hex(8)
        self._lines: dict[str, dict[str, Any]] = {}  # by the result's path below the folder
        if self.path.exists():
            self._open()

    def finished(self, photo: Path, target: Path) -> dict[str, Any] | None:
        """What was noted with a photo's result, if that is whole and was made of this file by these settings.

        Else None: the photo is still to be done.
        """
        line = self._lines.get(self._name(target), {})
        entry = line.get("entry")
        with contextlib.suppress(OSError):
            same = line.get("key") == self._key(sha256_of(photo)) and line.get("sha256") == sha256_of(target)
            return entry if same and isinstance(entry, dict) else None
        return None

    def write(self, photo_sha256: str, target: Path, data: bytes, entry: dict[str, Any]) -> None:
        """Note and write one result, the bytes `data`; `photo_sha256` is of the file that it was made of."""
        file = self._file or self._open()
        line = {
            "result": self._name(target),
            "key": self._key(photo_sha256),
            "sha256": sha256(data),
            "entry": entry,
        }
        _append(file, line)
        atomic_write(target, lambda out: out.write(data), self._token)

    def close(self, *, complete: bool) -> None:
        """End the run; a complete one leaves no journal."""
        if self._file is not None:
            if complete:
                self.path.unlink(missing_ok=True)
            self._file.close()

    def _name(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()

    def _key(self, photo_sha256: str) -> str:
        return sha256(f"{photo_sha256} {self._settings}".encode())

    def _open(self) -> BinaryIO:
        """Lock and read the journal, or start it, and remove what a killed run was writing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+b")  # noqa: SIM115 (it stays open: closing it unlocks it)
        if not _lock(file):
            file.close()
            raise ValueError(f"another run writes to {self.folder}: wait for it, or choose another folder")
        file.seek(0)
        data = file.read()
        for line in map(_parsed, data.splitlines()):
            if isinstance(line.get("result"), str):
                self._lines[line["result"]] = line
            elif re.fullmatch("[0-9a-f]{16}", str(line.get("token"))):
                self._token = line["token"]
        for target in self._targets:
            temporary_beside(target, self._token).unlink(missing_ok=True)
        if data and not data.endswith(b"\n"):  # the last line was cut
            file.write(b"\n")
        _append(file, {"token": self._token})
        self._file = file
        return file


def _append(file: BinaryIO, line: dict[str, Any]) -> None:
    file.write(f"{json.dumps(line)}\n".encode())
    file.flush()
    os.fsync(file.fileno())


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _lock(file: BinaryIO) -> bool:
    """False when another process holds the lock; where there are no locks, nobody can."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return True
    return True
