"""What the server is given: limits, a folder, a port, perhaps a GPU. Imports nothing heavy, so that bad
settings are told at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unirestorer.config import Section, from_dict

YOUNG_SECONDS = 60  # a file this young is never deleted
MAX_PORT = 65535


@dataclass(frozen=True)
class Limits(Section):
    """What visitors may take. Each is a whole number; UNIRESTORER_LIMITS="seconds=60,jobs=16" sets some."""

    jobs: int = 32  # waiting at once
    visitor_jobs: int = 4  # waiting or running, of one open page or client
    address_jobs: int = 24  # the same of one network address: a school class may share one
    seconds: int = 300  # that a job may run
    stop_seconds: int = 25  # that running jobs get when the server is told to stop
    kept_seconds: int = 3600  # that photos and results stay on disk
    disk_megabytes: int = 4096  # of photos and results on disk, oldest deleted first
    upload_megabytes: int = 512  # of one request

    def check(self) -> None:
        """Raises ValueError for a limit that lets nobody in."""
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")


def read_limits(text: str) -> Limits:
    """The limits in "name=number,name=number". Raises ValueError that lists the known names."""
    values: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, number = part.partition("=")
        if not number.isdecimal() or len(number) > 9:
            raise ValueError(f"UNIRESTORER_LIMITS: expected name=number, got {part[:40]!r}")
        values[name] = int(number)
    return from_dict(Limits, {**asdict(Limits()), **values}, "UNIRESTORER_LIMITS")


# Files


def prepare_folder() -> Path:
    """The folder of visitors' files, GRADIO_TEMP_DIR or one of our own, made the place of all temporary ones.

    Raises ValueError when it cannot be written.
    """
    try:
        named = os.environ.get("GRADIO_TEMP_DIR")
        folder = Path(named) if named else Path(tempfile.gettempdir()) / f"unirestorer-{os.getuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        if not named and folder.stat().st_uid != os.getuid():
            raise ValueError(f"{folder} belongs to another user: name a folder with GRADIO_TEMP_DIR")
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        where = error.filename or "the temporary folder"
        raise ValueError(
            f"cannot store photos in {where} ({error.strerror or error}): name a writable folder with "
            "GRADIO_TEMP_DIR"
        ) from None
    os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = str(folder)
    return folder


def free_bytes(folder: Path) -> int:
    """Bytes left on the folder's disk; 0 if there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def sweep(folder: Path, kept_seconds: float, most_bytes: int, now: float | None = None) -> int:
    """Delete files older than `kept_seconds`, and the oldest until `most_bytes` are left; then empty folders.

    Files younger than a minute stay in any case. Returns the number of deleted files.
    """
    now = time.time() if now is None else now
    files: list[tuple[float, int, Path]] = []  # age in seconds, bytes
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            status = path.lstat()
            if not path.is_dir() or path.is_symlink():
                # A file of the future is old, too: a clock that was set back must not keep it for ever.
                files.append((abs(now - status.st_ctime), status.st_size, path))
    total = sum(size for _, size, _ in files)
    deleted = 0
    for age, size, path in sorted(files, key=lambda entry: -entry[0]):
        if age < YOUNG_SECONDS or (age < kept_seconds and total <= most_bytes):
            continue
        with contextlib.suppress(OSError):
            path.unlink()
            total, deleted = total - size, deleted + 1
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink() and now - path.stat().st_mtime >= YOUNG_SECONDS:
                path.rmdir()  # fails, as it should, on a folder that holds anything
    return deleted


# Surroundings


def give_back_memory() -> None:
    """Hand what has been freed back to the system: glibc would keep hundreds of MB after a large photo.

    Nothing where the C library has no malloc_trim (musl, macOS, Windows).
    """
    with contextlib.suppress(AttributeError, TypeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def lent_gpu(seconds: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """On a Space whose GPU is lent per call (ZeroGPU), the package's decorator; elsewhere nothing."""
    if not os.environ.get("SPACES_ZERO_GPU"):
        return lambda function: function
    import spaces  # pyright: ignore[reportMissingImports] - exists only there

    return spaces.GPU(duration=min(seconds, 120))


def choose_port() -> int | None:
    """GRADIO_SERVER_PORT, if it is set and free; None leaves the choice to Gradio, from 7860 on.

    Raises ValueError.
    """
    text = os.environ.get("GRADIO_SERVER_PORT", "")
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) <= MAX_PORT:
        raise ValueError(f"GRADIO_SERVER_PORT: expected a number from 1 to {MAX_PORT}, got {text[:20]!r}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), int(text)))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ValueError(f"port {text}: {reason}: choose another one with GRADIO_SERVER_PORT") from None
    return int(text)
