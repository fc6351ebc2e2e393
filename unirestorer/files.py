"""Writing files so that a crash or a full disk never leaves half of one, and checking them."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def atomic_write(
    path: str | os.PathLike[str], writer: Callable[[BinaryIO], object], token: str | None = None
) -> None:
    """Let `writer` fill a temporary file beside `path`, then put it in the place of `path` in one step.

    Whatever `writer` or the disk raises is passed on; then the old file is untouched and the temporary one is
    gone. A symbolic link keeps pointing where it did, a replaced file keeps its permissions. `token` names
    the temporary file, see `temporary_beside`: who was killed while writing can find it again.
    """
    target = Path(os.path.realpath(path))
    temporary = temporary_beside(target, token or secrets.token_hex(8))
    file = open(temporary, "x+b")  # noqa: SIM115 (closed below; if this fails there is nothing to clean up)
    try:
        with file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:  # also on Ctrl-C
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def temporary_beside(path: str | os.PathLike[str], token: str) -> Path:
    """The temporary file of `atomic_write` for `path`."""
    return Path(os.path.realpath(path)).with_name(f".{token}.tmp")


def sha256(data: bytes) -> str:
    """The SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, read in pieces. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
