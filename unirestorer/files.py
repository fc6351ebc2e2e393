"""Writing files so that a crash or a full disk never leaves half of one, and checking them."""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path


def atomic_write(path: str | os.PathLike[str], data: bytes, token: str | None = None) -> None:
    """Write `data` to a temporary file beside `path`, then put that in the place of `path` in one step.

    Raises OSError; then the old file is untouched and the temporary one is gone. A symbolic link keeps
    pointing where it did, a replaced file keeps its permissions. The temporary file is named by `token`,
    drawn where there is none: who was killed while writing and writes again, takes up what was left.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{token or secrets.token_hex(8)}.tmp")
    file = open(temporary, "wb")  # noqa: SIM115 (closed below; if this fails there is nothing to clean up)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:  # also on Ctrl-C
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sha256(data: bytes) -> str:
    """The SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, read in pieces. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
