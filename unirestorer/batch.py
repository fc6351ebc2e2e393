"""Photos of the command line: finding them, where results go, one after another, and restoring them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from unirestorer.experts import out_of_memory
from unirestorer.files import atomic_write, sha256_of
from unirestorer.imaging import SUFFIXES, WRITABLE, encode_image, image_files, load_image, load_profile
from unirestorer.journal import Journal
from unirestorer.pipeline import Clock, UniRestorer
from unirestorer.report import describe, percent
from unirestorer.types import Decision, Task

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Photo:
    """A photo as it was read: pixels x (1, 3, H, W) in [0, 1], ICC profile, SHA-256 of the file, seconds."""

    x: Tensor
    profile: bytes | None
    sha256: str
    seconds: float

    @property
    def size(self) -> list[int]:
        """[width, height] in pixels."""
        return [self.x.shape[-1], self.x.shape[-2]]


class PhotoError(ValueError):
    """One photo cannot be processed; a run over several goes on without it."""


Work = Callable[[Path, Photo, Progress], str | None]  # what it returns is printed

# Where photos are and where results go


def is_run(inputs: list[str]) -> bool:
    """Whether the arguments name more than a single photo."""
    return len(inputs) > 1 or Path(inputs[0]).is_dir()


def find_photos(inputs: list[str], output: str | None = None) -> dict[Path, Path]:
    """The photos that the arguments name, each with its path below the named folder, or its own name.

    A result folder inside a named folder is left out: a second run must not restore the first one's results.
    Raises ValueError for what does not exist and for a folder without photos.
    """
    photos: dict[str, tuple[Path, Path]] = {}  # by absolute path: a photo named twice is one
    results = None if output is None else Path(output).resolve()
    for source in map(Path, inputs):
        if not source.exists():
            raise ValueError(f"{source}: no such file or folder")
        root = source if source.is_dir() else source.parent
        inside = results is not None and source.resolve() in results.parents
        for path in image_files([source]):
            if not (inside and results in path.resolve().parents):
                photos.setdefault(os.path.abspath(path), (path, path.relative_to(root)))
    if not photos:
        raise ValueError(f"{inputs[0]}: no photos but those in {output}, where the results belong")
    return dict(photos.values())


def find_targets(photos: dict[Path, Path], inputs: list[str], output: str) -> dict[Path, Path]:
    """Where each photo's result goes: to the file `output`, or into that folder under the photo's own path.

    Raises ValueError when the format cannot be written or two results would share a file.
    """
    out = Path(output)
    folder_named = out.is_dir() or not out.suffix or output.endswith(("/", os.sep))
    if not (folder_named or is_run(inputs)):
        if out.suffix.lower() not in WRITABLE:
            raise ValueError(f"{output}: results end in {' '.join(WRITABLE)}; a folder's name ends in /")
        return dict.fromkeys(photos, out)
    if out.suffix.lower() in SUFFIXES and not folder_named:
        raise ValueError(f"{output}: the results of several photos or of a folder need a folder, not a file")
    owners: dict[Path, Path] = {}  # photos by target
    for path, name in photos.items():
        target = out / (name if name.suffix.lower() in WRITABLE else name.with_suffix(".png"))
        owner = owners.setdefault(target, path)
        if owner != path:
            raise ValueError(f"{owner} and {path} would both become {target}: process them one by one")
    return {path: target for target, path in owners.items()}


def refuse_overwriting(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Raises ValueError when an output is an input, by whatever name, a folder, or another output's file.

    None stands for a file that was not asked for.
    """
    taken = {_file_id(path) for path in inputs if path and path.exists()}
    seen: set[str] = set()
    for path in filter(None, outputs):
        if path.is_dir():  # said before hours of work, not after
            raise ValueError(f"{path} is a folder: name a file")
        if path.exists() and _file_id(path) in taken:
            raise ValueError(f"{path} is an input and would be overwritten: choose another output")
        if os.path.abspath(path) in seen:
            raise ValueError(f"{path} would be written twice: choose different outputs")
        seen.add(os.path.abspath(path))


def _file_id(path: Path) -> tuple[int, int]:
    """What two names of one file have in common."""
    status = path.stat()
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of `path`; errors inside name `path`, not a temporary file. Raises OSError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` in one step, its folder made. Raises OSError."""
    with writing(path):
        atomic_write(path, f"{text}\n".encode())


# One photo after another


def for_each(photos: dict[Path, Path], work: Work, *, alone: bool = False, verb: str = "") -> list[str]:
    """Do `work` on every photo, print the line it returns, go on past bad photos and return their errors.

    `work` gets a function that takes the share done of its photo. With `alone` a photo's error is raised.
    """
    layout = "{percentage:3.0f}%|{bar:30}| {desc} [{elapsed}<{remaining}]"
    bar = tqdm(total=len(photos), bar_format=layout, leave=False, delay=0.5, disable=None, file=sys.stderr)
    failures = []
    with contextlib.closing(read_ahead(photos)) as readings, bar, logging_redirect_tqdm():
        for done, (path, reading) in enumerate(readings):
            bar.set_description_str(f"{verb}{done + 1}/{len(photos)} {photos[path].name}", refresh=False)

            def progress(share: float, done: int = done) -> None:
                bar.update(done + share - bar.n)

            try:
                if line := work(path, reading.result(), progress):
                    bar.write(line, file=sys.stdout)
            except (PhotoError, MemoryError, RuntimeError) as error:
                if not isinstance(error, PhotoError):
                    if not out_of_memory(error):
                        raise
                    error = PhotoError(f"{path}: not enough memory; choose smaller tiles or a smaller photo")
                if alone:
                    raise error from None
                failures.append(" ".join(str(error).split()))
            progress(1)
    return failures


def read_ahead(paths: Iterable[Path]) -> Generator[tuple[Path, Future[Photo]], None, None]:
    """Each photo with its reading; while one is being worked on, a thread reads the next, and no further."""
    with ThreadPoolExecutor(1, "read") as pool:
        ahead: list[tuple[Path, Future[Photo]]] = []
        for path in paths:
            ahead.append((path, pool.submit(read_photo, path)))
            if len(ahead) == 2:
                yield ahead.pop(0)
        yield from ahead


def read_photo(path: Path) -> Photo:
    """The photo in a file. Raises PhotoError."""
    started = time.perf_counter()
    digest = ""
    with contextlib.suppress(OSError):  # `load_image` will say so; hashed first, so that a file that changes
        digest = sha256_of(path)  # meanwhile is never taken for the one that was restored
    with photo_error(path):
        x = load_image(path)
        return Photo(x, load_profile(path), digest, time.perf_counter() - started)


@contextlib.contextmanager
def photo_error(path: Path) -> Iterator[None]:
    """What is raised inside as ValueError concerns this photo alone."""
    try:
        yield
    except ValueError as error:
        raise PhotoError(f"{path}: {str(error).removeprefix(f'{path.name}: ')}") from None


# Restoring


@dataclass
class Run:
    """Restores photos to `targets`, by instruction, forced expert and tiles as `UniRestorer` takes them.

    Several photos are all routed first, then restored expert by expert, so that each expert is loaded once; a
    journal keeps account. Without a journal a single photo is restored, and its error passed on.
    """

    model: UniRestorer
    photos: dict[Path, Path]
    targets: dict[Path, Path]
    tasks: frozenset[Task] | None
    expert: str | None
    tile_px: int | None
    journal: Journal | None
    entries: dict[Path, dict[str, Any]] = field(default_factory=dict)  # reports of finished photos
    kept: int = 0  # of these, from an earlier run
    failures: list[str] = field(default_factory=list)
    decisions: dict[Path, Decision] = field(default_factory=dict)  # of photos that are not restored yet

    def restore(self, report: Path | None = None) -> None:
        """Restore what is not finished, and write the entries of what then is to the file `report`."""
        waiting = {path: name for path, name in self.photos.items() if not self._keep(path, name)}
        self.kept = len(self.entries)
        if len(waiting) > 1 and self.expert is None:
            self.failures += for_each(waiting, self._decide, verb="routing ")
            waiting = self._by_expert()
        self.failures += for_each(waiting, self._restore, alone=self.journal is None)
        if report is not None:
            entries = [self.entries[path] for path in self.photos if path in self.entries]
            write_text(report, json.dumps(entries, indent=1))
        if self.journal is not None:
            self.journal.close(complete=not self.failures)

    def summary(self, seconds: float) -> list[str]:
        """How a run of so many seconds went, in lines: photos per expert (its name in words and number)."""
        entries = list(self.entries.values())[self.kept :]
        restored = Counter((entry["expert_name"], entry["expert"]) for entry in entries)
        others = {"kept": self.kept, "failed": len(self.failures)}
        head = f"restored {len(entries)} of {len(self.photos)} photos in {seconds:.1f} s"
        rows = [f"  {count} by {words} ({expert})" for (words, expert), count in restored.most_common()]
        return [", ".join([head, *(f"{count} {word}" for word, count in others.items() if count)]), *rows]

    def _keep(self, path: Path, name: Path) -> bool:
        """Whether an earlier run has finished this photo."""
        target = self.targets[path]
        entry = self.journal and self.journal.finished(path, target)
        if entry:
            self.entries[path] = {**entry, "input": str(path), "output": str(target)}
            tqdm.write(f"{name} → {entry['expert_name']} (kept, it was restored before)", file=sys.stdout)
        return bool(entry)

    def _decide(self, path: Path, photo: Photo, progress: Progress) -> None:
        seconds = {"decode": photo.seconds}
        self.decisions[path] = self.model.inspect(photo.x, self.tasks, self.expert, seconds)

    def _by_expert(self) -> dict[Path, Path]:
        """The photos that are decided on, one expert's after another's, as experts first appear."""
        experts = {path: int(decision.route.expert) for path, decision in self.decisions.items()}
        order = list(dict.fromkeys(experts.values()))
        paths = sorted(experts, key=lambda path: order.index(experts[path]))
        return {path: self.photos[path] for path in paths}

    def _restore(self, path: Path, photo: Photo, progress: Progress) -> str:
        if path in self.decisions:
            self.decisions[path].seconds["decode"] += photo.seconds  # read to be routed, and again
        else:
            self._decide(path, photo, progress)
        decision, target = self.decisions.pop(path), self.targets[path]
        image = self.model.apply(photo.x, decision, tile_px=self.tile_px, progress=progress).image
        clock = Clock(decision.seconds)
        with photo_error(path), writing(target):
            data = encode_image(image, target, photo.profile)
            clock.stop("save")
            about = {"input": str(path), "output": str(target), "size": photo.size}
            entry = {**about, **describe(self.model, decision)}
            if self.journal is None:
                atomic_write(target, data)
            else:
                self.journal.write(photo.sha256, target, data, entry)
        self.entries[path] = entry
        chosen = entry["levels"][entry["level"]]["probability"]
        why = "forced" if entry["forced"] else f"level {entry['level']}, {percent(chosen)}"
        return f"{self.photos[path]} → {entry['expert_name']} ({why}), {sum(decision.seconds.values()):.1f} s"
