"""The command line: restore, inspect, degrade, verify and bench.

Exit codes: 0 done, 1 some photos of several failed, 2 bad input (one line on stderr says what),
130 interrupted.
Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn

from unirestorer.files import atomic_write, sha256_of
from unirestorer.journal import NAME as JOURNAL_NAME
from unirestorer.journal import Journal
from unirestorer.types import Decision, Task, named_tasks

if TYPE_CHECKING:
    from torch import Tensor

    from unirestorer.degradation import Recipe
    from unirestorer.pipeline import UniRestorer

PROGRAM = "python -m unirestorer"
SMALLEST_TILE_PX = 64
# Options of `degrade`: the task that undoes each, and its help. Words are degrees, numbers in the unit of
# `RANGES`.
STRENGTHS: dict[str, tuple[Task, str]] = {
    "lowlight": (Task.LOWLIGHT, "dim, very-low, or gamma from 1 (trained to 2.5)"),
    "blur": (Task.DEBLUR, "mild, strong, or the motion's length in pixels from 1 (trained on 5 to 23)"),
    "noise": (Task.DENOISE, "light, medium, heavy, or sigma on the 0-255 scale (trained on 2 to 50)"),
    "rain": (Task.DERAIN, "light, medium, heavy, or streak strength from 0 (trained on 10 to 150)"),
    "snow": (Task.DESNOW, "light, medium, heavy, or density from 0 (trained to 1)"),
    "haze": (Task.DEHAZE, "light, thick, or beta from 0 (trained on 0.3 to 1.5)"),
    "jpeg": (Task.DEJPEG, "light, medium, heavy, or quality from 100 down to 1 (trained on 50 to 8)"),
}

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Photo:
    """A photo as it was read: pixels x (1, 3, H, W) in [0, 1], ICC profile, SHA-256 of the file, seconds."""

    x: Tensor
    profile: bytes | None
    sha256: str
    seconds: float


class PhotoError(ValueError):
    """One photo cannot be processed; a run over several goes on without it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's own) and return the exit code.

    Raises SystemExit for `--help` and for arguments that do not parse.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be valid in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, `head` perhaps, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        return complain(str(error))
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def complain(message: str) -> Literal[2]:
    """Say on one line of stderr what is wrong; the exit code of bad input."""
    print("unirestorer:", " ".join(message.split()), file=sys.stderr)
    return 2


# Commands


def restore(args: argparse.Namespace) -> int:
    """Restore photos and say which expert did it.

    Several photos are all routed first, then restored expert by expert, so that each expert is loaded once.
    """
    from unirestorer.checkpoint import find_checkpoint
    from unirestorer.experts import DEFAULT_TILE_PX
    from unirestorer.imaging import encode_image
    from unirestorer.pipeline import Clock
    from unirestorer.report import describe

    started = time.perf_counter()
    tasks = named_tasks(args.task)
    photos = find_photos(args.inputs, args.output)
    targets = find_targets(photos, args.inputs, args.output)
    refuse_overwriting([*targets.values(), *optional(args.report)], photos)
    folder = find_checkpoint(args.checkpoint, args.revision)
    model = open_model(folder, args.device, tasks)
    if args.expert is not None:
        model.tree.expert_number(args.expert)
    tile_px = DEFAULT_TILE_PX if args.tile == "auto" else args.tile
    settings = {
        "checkpoint": sha256_of(folder / "config.json"),  # which holds the hashes of all parts
        "tasks": None if tasks is None else sorted(tasks),
        "expert": args.expert,
        "tile_px": tile_px,
    }
    journal = Journal(Path(args.output), settings, targets.values()) if is_run(args.inputs) else None
    entries: dict[Path, dict[str, Any]] = {}
    decided: dict[Path, Decision] = {}
    failures: list[str] = []

    waiting = dict(photos)
    for path, relative in photos.items():
        entry = journal and journal.finished(path, targets[path])
        if entry and isinstance(entry.get("expert_name"), str):
            entries[path] = {**entry, "input": str(path), "output": str(targets[path])}
            print(f"{relative} → {entry['expert_name']} (kept, it was restored before)")
            del waiting[path]
    kept = len(entries)

    def decide(path: Path, photo: Photo, progress: Progress) -> None:
        with enough_memory(path):
            decided[path] = model.inspect(photo.x, tasks, seconds={"decode": photo.seconds})

    def one(path: Path, photo: Photo, progress: Progress) -> str:
        decision = decided.pop(path, None)
        with enough_memory(path):
            if decision is None:
                decision = model.inspect(photo.x, tasks, args.expert, {"decode": photo.seconds})
            else:
                decision.seconds["decode"] += photo.seconds  # read once to be routed, once to be restored
            image = model.apply(photo.x, decision, tile_px=tile_px, progress=progress).image
        clock = Clock(decision.seconds)
        with photo_error(path), writing(targets[path]):
            data = encode_image(image, targets[path], photo.profile)
        clock.stop("save")
        about = {"input": str(path), "output": str(targets[path]), "size": size(photo.x)}
        entry = {**about, **describe(model, decision)}
        with writing(targets[path]):
            if journal is None:
                atomic_write(targets[path], lambda file: file.write(data))
            else:
                journal.write(photo.sha256, targets[path], data, entry)
        entries[path] = entry
        chosen = entry["levels"][entry["level"]]
        why = "forced" if entry["forced"] else f"level {entry['level']}, {percent(chosen['probability'])}"
        total = sum(entry["seconds"].values())
        return f"{photos[path]} → {entry['expert_name']} ({why}), {total:.1f} s"

    if len(waiting) > 1 and args.expert is None:
        for_each(waiting, args.inputs, decide, failures, "routing ")
        waiting = by_expert(decided, photos)
    for_each(waiting, args.inputs, one, failures)
    in_order = [entries[path] for path in photos if path in entries]
    if args.report:
        with writing(Path(args.report)):
            write_text(args.report, json.dumps(in_order, indent=1))
    if journal is not None:
        journal.close(complete=not failures)
        restored = Counter((entry["expert"], entry["expert_name"]) for entry in list(entries.values())[kept:])
        lines = summary(restored, len(photos), kept, len(failures), time.perf_counter() - started)
        print(*lines, sep="\n", file=sys.stderr)
    return tell(failures, len(photos))


def by_expert(decided: dict[Path, Decision], photos: dict[Path, Path]) -> dict[Path, Path]:
    """The photos whose way is known, one expert's after another's, in the order in which experts first
    appear.
    """
    groups: dict[int, dict[Path, Path]] = {}
    for path, decision in decided.items():
        groups.setdefault(int(decision.route.expert), {})[path] = photos[path]
    return {path: relative for group in groups.values() for path, relative in group.items()}


def summary(
    restored: Counter[tuple[str, str]], total: int, kept: int, failed: int, seconds: float
) -> list[str]:
    """How a folder run went, in lines: photos per expert (its number and its name in words), seconds."""
    others = [f"{kept} kept"] * (kept > 0) + [f"{failed} failed"] * (failed > 0)
    head = f"restored {restored.total()} of {total} photos in {seconds:.1f} s"
    rows = [f"  {count} by {name} ({expert})" for (expert, name), count in restored.most_common()]
    return [", ".join([head, *others]), *rows]


def inspect(args: argparse.Namespace) -> int:
    """Say how photos would be routed, in words or as JSON."""
    from unirestorer.checkpoint import find_checkpoint
    from unirestorer.report import describe

    tasks = named_tasks(args.task)
    photos = find_photos(args.inputs)
    model = open_model(find_checkpoint(args.checkpoint, args.revision), args.device, tasks)
    entries: list[dict[str, Any]] = []
    failures: list[str] = []

    def one(path: Path, photo: Photo, progress: Progress) -> str | None:
        with enough_memory(path):
            decision = model.inspect(photo.x, tasks, seconds={"decode": photo.seconds})
        entries.append({"input": str(path), "size": size(photo.x), **describe(model, decision)})
        return None if args.json else in_words(entries[-1])

    for_each(photos, args.inputs, one, failures)
    code = tell(failures, len(photos))
    if args.json:
        print(json.dumps(entries, indent=1))
    return code


def degrade(args: argparse.Namespace) -> int:
    """Degrade clean photos by a recipe, all by the same one."""
    from unirestorer.imaging import save_image

    recipe = make_recipe(args)
    photos = find_photos(args.inputs, args.output)
    targets = find_targets(photos, args.inputs, args.output)
    refuse_overwriting([*targets.values(), *optional(args.save_recipe)], [*photos, *optional(args.recipe)])
    if args.save_recipe:
        with writing(Path(args.save_recipe)):
            write_text(args.save_recipe, recipe.to_json())

    failures: list[str] = []

    def one(path: Path, photo: Photo, progress: Progress) -> str:
        with enough_memory(path):
            degraded = recipe.apply(photo.x)
        with photo_error(path), writing(targets[path]):
            save_image(degraded, targets[path], photo.profile)
        return f"{photos[path]} → {recipe.words}"

    for_each(photos, args.inputs, one, failures)
    return tell(failures, len(photos))


def verify(args: argparse.Namespace) -> int:
    """Check a checkpoint's files and list them."""
    from unirestorer import checkpoint

    folder = checkpoint.find_checkpoint(args.name, args.revision)
    parts = checkpoint.verify(folder)
    print(*parts, sep="\n")
    print(f"{folder}: all {len(parts)} parts are sound (hashes, shapes, a forward pass)")
    return 0


def bench(args: argparse.Namespace) -> int:
    """Measure what serving costs, and print it as tables."""
    from tqdm import tqdm

    from unirestorer.bench import report, run_bench
    from unirestorer.checkpoint import find_checkpoint
    from unirestorer.experts import DEFAULT_TILE_PX

    folder = find_checkpoint(args.checkpoint, args.revision)
    if args.json:
        refuse_directory(Path(args.json))
    cases = len(args.sizes) * len(args.batch) + bool(args.experts)
    layout = "{percentage:3.0f}%|{bar:30}| {desc} [{elapsed}<{remaining}]"
    with tqdm(total=cases, bar_format=layout, leave=False, disable=None, file=sys.stderr) as bar:
        begun: list[str] = []

        def told(what: str) -> None:
            bar.update(len(begun) - bar.n)
            bar.set_description_str(what)
            begun.append(what)

        found = run_bench(
            folder,
            device=args.device,
            sizes=args.sizes,
            batches=args.batch,
            counts=args.experts,
            tile_px=DEFAULT_TILE_PX if args.tile == "auto" else args.tile,
            repeats=args.repeats,
            told=told,
        )
    print(report(found))
    if args.json:
        with writing(Path(args.json)):
            write_text(args.json, json.dumps(found, indent=1))
    return 1 if any("error" in row for row in found["rows"]) else 0


# Photos in and out


def find_photos(inputs: list[str], output: str | None = None) -> dict[Path, Path]:
    """The photos that the arguments name, each with its path below the named folder, or its own name.

    A result folder inside a named folder is left out: a second run must not restore the first one's results.
    Raises ValueError for what does not exist and for a folder without photos.
    """
    from unirestorer.imaging import image_files

    found: dict[str, tuple[Path, Path]] = {}
    for given in map(Path, inputs):
        if not given.exists():
            raise ValueError(f"{given}: no such file or folder")
        if not given.is_dir():
            found.setdefault(os.path.abspath(given), (given, Path(given.name)))
            continue
        results = None if output is None else Path(output).resolve()
        if results is not None and given.resolve() not in results.parents:
            results = None
        for path in image_files([given]):
            if results is None or results not in path.resolve().parents:
                found.setdefault(os.path.abspath(path), (path, path.relative_to(given)))
    if not found:
        raise ValueError(f"{inputs[0]}: no photos but those in {output}, where the results belong")
    return dict(found.values())


def find_targets(photos: dict[Path, Path], inputs: list[str], output: str) -> dict[Path, Path]:
    """Where each photo's result goes: to the file `output`, or into that folder under the photo's own path.

    Raises ValueError when the format cannot be written or two results would share a file.
    """
    from unirestorer.imaging import SUFFIXES

    writable = [suffix for suffix in SUFFIXES if suffix != ".gif"]
    out = Path(output)
    folder_named = out.is_dir() or not out.suffix or output.endswith(("/", os.sep))
    if not (folder_named or is_run(inputs)):
        if out.suffix.lower() not in writable:
            raise ValueError(f"{output}: results end in {' '.join(writable)}; a folder's name ends in /")
        return dict.fromkeys(photos, out)
    if out.suffix.lower() in SUFFIXES and not folder_named:
        raise ValueError(f"{output}: the results of several photos or of a folder need a folder, not a file")
    targets: dict[Path, Path] = {}
    owner: dict[Path, Path] = {}
    for path, relative in photos.items():
        kept = relative.suffix.lower() in writable
        target = out / (relative if kept else relative.with_suffix(".png"))
        if target in owner:
            raise ValueError(
                f"{owner[target]} and {path} would both become {target}: process them one by one"
            )
        owner[target], targets[path] = path, target
    return targets


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises ValueError when an output is an input, by whatever name, or two outputs are the same file."""
    taken = {file_id(path) for path in inputs if path.exists()}
    seen: set[str] = set()
    for path in outputs:
        if path.exists() and file_id(path) in taken:
            raise ValueError(f"{path} is an input and would be overwritten: choose another output")
        if os.path.abspath(path) in seen:
            raise ValueError(f"{path} would be written twice: choose different outputs")
        seen.add(os.path.abspath(path))


def refuse_directory(path: Path) -> None:
    """Raises ValueError for a folder where a file is to be written: told before hours of work, not after."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file")


def file_id(path: Path) -> tuple[int, int]:
    """What two names of one file have in common."""
    status = path.stat()
    return status.st_dev, status.st_ino


def is_run(inputs: list[str]) -> bool:
    """Whether the arguments name more than a single photo."""
    return len(inputs) > 1 or Path(inputs[0]).is_dir()


def for_each(
    photos: dict[Path, Path],
    inputs: list[str],
    work: Callable[[Path, Photo, Progress], str | None],
    failures: list[str],
    verb: str = "",
) -> None:
    """Do `work` on every photo, print the line it returns, and go on past bad photos, told in `failures`.

    `work` gets a function that is told the share done of its photo. A single photo's error is passed on.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    layout = "{percentage:3.0f}%|{bar:30}| {desc} [{elapsed}<{remaining}]"
    with (
        contextlib.closing(read_ahead(photos)) as readings,
        tqdm(
            total=len(photos), bar_format=layout, leave=False, delay=0.5, disable=None, file=sys.stderr
        ) as bar,
        logging_redirect_tqdm(),
    ):
        for done, (path, reading) in enumerate(readings):
            bar.set_description_str(f"{verb}{done + 1}/{len(photos)} {photos[path].name}", refresh=False)

            def progress(share: float, done: int = done) -> None:
                bar.update(done + share - bar.n)

            try:
                line = work(path, reading.result(), progress)
            except PhotoError as error:
                if not is_run(inputs):
                    raise
                failures.append(" ".join(str(error).split()))
            else:
                if line is not None:
                    bar.write(line, file=sys.stdout)
            progress(1)


def tell(failures: list[str], total: int) -> int:
    """List the photos that failed of `total`; the exit code."""
    if failures:
        complain(f"{len(failures)} of {total} photos failed:")
        print(*(f"  {failure}" for failure in failures), sep="\n", file=sys.stderr)
    return 1 if failures else 0


def read_ahead(photos: Iterable[Path]) -> Generator[tuple[Path, Future[Photo]], None, None]:
    """Each photo with its reading; while one is being worked on, a thread reads the next, and no further."""
    with ThreadPoolExecutor(1, "read") as pool:
        paths = iter(photos)
        path = next(paths, None)
        reading = None if path is None else pool.submit(read_photo, path)
        while path is not None and reading is not None:
            coming = next(paths, None)
            following = None if coming is None else pool.submit(read_photo, coming)
            yield path, reading
            path, reading = coming, following


def read_photo(path: Path) -> Photo:
    """The photo in a file. Raises PhotoError."""
    from unirestorer.imaging import load_image, load_profile

    started = time.perf_counter()
    digest = ""
    with contextlib.suppress(OSError):  # `load_image` will say so; hashed first, so that a file that changes
        digest = sha256_of(path)  # meanwhile is never taken for the one that was restored
    with photo_error(path), enough_memory(path):
        x = load_image(path)
        return Photo(x, load_profile(path), digest, time.perf_counter() - started)


@contextlib.contextmanager
def photo_error(path: Path) -> Iterator[None]:
    """What is raised inside as ValueError concerns this photo alone."""
    try:
        yield
    except ValueError as error:
        raise PhotoError(f"{path}: {str(error).removeprefix(f'{path.name}: ')}") from None


@contextlib.contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Running out of memory inside concerns this photo alone."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has no class of its own for the CPU
        texts = ("out of memory", "allocate memory", "not enough memory")
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in texts):
            raise
        raise PhotoError(
            f"{path}: not enough memory for this photo; choose smaller tiles or a smaller photo"
        ) from None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of `path`; errors inside name `path`, not a temporary file. Raises OSError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None


def write_text(path: str, text: str) -> None:
    """Replace the file at `path` in one step."""

    def write(file: BinaryIO) -> None:
        file.write(f"{text}\n".encode())

    atomic_write(path, write)


def optional(path: str | None) -> list[Path]:
    return [Path(path)] if path else []


# Words and numbers


def open_model(folder: Path, device: str, tasks: frozenset[Task] | None) -> UniRestorer:
    """The checkpoint in `folder`. Raises ValueError, also for tasks that it has no expert for."""
    from unirestorer.pipeline import UniRestorer

    model = UniRestorer.from_pretrained(folder, device=device)
    model.tree.mask(tasks)
    return model


def make_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe in `--recipe`, or the one that the strengths describe. Raises ValueError."""
    from unirestorer.degradation import Recipe, compose

    given = {
        task: getattr(args, flag) for flag, (task, _) in STRENGTHS.items() if getattr(args, flag) is not None
    }
    if args.recipe is not None:
        if given:
            raise ValueError("--recipe already says what to do: leave the strengths out")
        try:
            recipe = Recipe.from_json(Path(args.recipe).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{args.recipe}: {error}") from None
        if any(getattr(step, "real", False) for step in recipe.steps):
            raise ValueError(
                f"{args.recipe}: real rain needs a folder of rain layers, which only training has"
            )
        return recipe if args.seed is None else recipe.reseeded(args.seed)
    if not given:
        raise ValueError(
            f"nothing to do: give --recipe or one of {', '.join(f'--{flag}' for flag in STRENGTHS)}"
        )
    return compose({task: strength(task, text) for task, text in given.items()}, args.seed or 0)


def strength(task: Task, text: str) -> float:
    """A strength in the unit of `RANGES` from a number or a degree, which stands for its middle.

    Raises ValueError.
    """
    from unirestorer.degradation.recipe import degree_strengths

    degrees = degree_strengths(task)
    if text in degrees:
        return degrees[text]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        flag = next(flag for flag, (undo, _) in STRENGTHS.items() if undo is task)
        raise ValueError(f"--{flag} {text}: expected a number or {', '.join(degrees)}")
    return number


def in_words(data: dict[str, Any]) -> str:
    """A routing decision, as `inspect --json` has it, in a few lines."""
    leaf, width, height = data["leaves"][data["leaf"]], *data["size"]
    tasks = sorted(data["tasks"].items(), key=lambda item: -item[1])
    lines = {
        "tasks": ", ".join(f"{task} {percent(p)}" for task, p in tasks if p >= 0.005),
        "captions": "; ".join(
            f"{caption['text']} {percent(caption['probability'])}" for caption in data["captions"]
        ),
        "leaf": f"{leaf['name']} ({leaf['expert']}) {percent(leaf['probability'])}",
        "levels": "; ".join(
            f"{row['level']} {row['name']} {percent(row['probability'])}" for row in data["levels"]
        ),
        "expert": f"{data['expert_name']} ({data['expert']})",
        "e_gran": "no percentile: this checkpoint has no map",
    }
    if "map" in data:
        gran, distance = data["e_gran_percentile"], data["distance_percentile"]
        lines["e_gran"] = (
            f"percentile {gran:.0f}: less sure than {gran:.0f} % of the held-out training photos"
        )
        lines["distance"] = f"percentile {distance:.0f}: less familiar than {distance:.0f} % of them"
    return "\n".join(
        [f"{data['input']}, {width} x {height} px", *(f"  {k:<9} {v}" for k, v in lines.items())]
    )


def percent(probability: float) -> str:
    return f"{100 * probability:.0f} %"


def size(x: Tensor) -> list[int]:
    """[width, height] in pixels of x (B, 3, H, W)."""
    return [x.shape[-1], x.shape[-2]]


# Arguments


class Parser(argparse.ArgumentParser):
    """argparse's parser with its errors on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"unirestorer: {' '.join(message.split())} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the parsed arguments hold the command's function as `run`."""
    parser = Parser(
        prog=PROGRAM,
        description="Restores photos: estimates their degradation and picks an expert of the right level.",
        epilog=f"example:\n  {PROGRAM} restore holiday/ -o restored/\n\n{PROGRAM} COMMAND --help says more",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        run: Callable[[argparse.Namespace], int], text: str, *examples: str
    ) -> argparse.ArgumentParser:
        lines = "\n".join(f"  {PROGRAM} {run.__name__} {example}" for example in examples)
        added = commands.add_parser(
            run.__name__,
            help=text,
            description=text,
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added

    one = command(
        restore,
        "restore photos",
        "rainy.png -o clear.png",
        "holiday/ -o restored/ --report report.json",
        "rainy.png -o clear/ --task derain dehaze",
        "noisy.png -o forced.png --expert 1-2 --tile off",
    )
    add_inputs(one, output=True)
    add_model(one)
    one.description = (
        "restore photos; several are routed first, then restored expert by expert.\n"
        "A run over a folder that was interrupted goes on where it stopped: results are kept that are\n"
        f"whole and come from the same file, checkpoint and options. OUT/{JOURNAL_NAME}\n"
        "keeps account of that until all photos are restored."
    )
    one.add_argument(
        "--expert", metavar="LEVEL-INDEX", help="use this expert, whatever the router chooses: 0-0, 1-3 ..."
    )
    add_tile(one)
    one.add_argument(
        "--report", metavar="FILE", help="write each photo's probabilities, path and timings there as JSON"
    )

    one = command(
        inspect,
        "say how photos would be routed, without restoring them",
        "rainy.png",
        "holiday/ --json > routes.json",
    )
    add_inputs(one, output=False)
    add_model(one)
    one.add_argument("--json", action="store_true", help="print JSON instead of words")

    one = command(
        degrade,
        "degrade clean photos, in the order of the options below",
        "clean.png -o rainy.png --rain medium --noise 25",
        "photos/ -o worse/ --haze 1.2 --jpeg heavy --seed 7 --save-recipe recipe.json",
        "photos/ -o again/ --recipe recipe.json",
    )
    add_inputs(one, output=True)
    for flag, (_, text) in STRENGTHS.items():
        one.add_argument(f"--{flag}", metavar="STRENGTH", help=text)
    one.add_argument("--seed", type=seed, help="of everything drawn (default: 0, or the recipe's own)")
    one.add_argument("--recipe", metavar="FILE", help="take the degradations from this JSON file instead")
    one.add_argument("--save-recipe", metavar="FILE", help="write the recipe there as JSON")

    one = command(
        verify,
        "check a checkpoint: hashes, shapes, a forward pass through every expert",
        "single",
        "checkpoints/mixed",
    )
    one.add_argument(
        "name", metavar="CHECKPOINT", help="a folder, a name in checkpoints/, or a hub id user/name"
    )
    one.add_argument("--revision", help="branch, tag or commit of a hub id")

    one = command(
        bench,
        "measure seconds and peak memory per stage, auto mode beside its chosen expert, growth",
        "--json bench.json",
        "--sizes 1024 2048 4096 8000x6000 --batch 1 --experts",
    )
    one.add_argument(
        "--sizes",
        nargs="+",
        type=photo_size,
        default=[(256, 256), (512, 512), (1024, 1024)],
        metavar="N|WxH",
        help="photos' sides in pixels (default: 256 512 1024)",
    )
    one.add_argument(
        "--batch", nargs="+", type=whole(1, 1024), default=[1, 16], metavar="N", help="(default: 1 16)"
    )
    one.add_argument(
        "--experts",
        nargs="*",
        type=whole(2, 10_000),
        default=[27, 270],
        metavar="N",
        help="numbers of experts to compare, of random routers; none: leave that out (default: 27 270)",
    )
    one.add_argument(
        "--repeats", type=whole(1, 1000), default=3, metavar="N", help="warm rounds (default: %(default)s)"
    )
    add_tile(one)
    add_checkpoint(one)
    one.add_argument("--json", metavar="FILE", help="write everything there, unrounded, as JSON")
    return parser


def add_inputs(parser: argparse.ArgumentParser, *, output: bool) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="IN", help="photos, and folders that are searched at all depths"
    )
    if output:
        parser.add_argument(
            "-o",
            "--output",
            required=True,
            metavar="OUT",
            help="a file for one photo, or a folder, which keeps sub-folders and names; "
            "formats that cannot be written become PNG; an input is never overwritten",
        )


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        nargs="+",
        action="extend",
        metavar="TASK",
        help=f"instruction: only experts of {', '.join(Task)}",
    )
    add_checkpoint(parser)


def add_tile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile",
        type=tile,
        default="auto",
        metavar="auto|N|off",
        help=f"side in pixels of what the expert sees at once, at least {SMALLEST_TILE_PX}; "
        "off: the whole photo (default: %(default)s)",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="single",
        help="a folder, a name in checkpoints/, or a hub id user/name (default: single)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)"
    )


def tile(text: str) -> int | None | Literal["auto"]:
    """The argument of `--tile`."""
    if text in ("auto", "off"):
        return "auto" if text == "auto" else None
    if not text.isdecimal() or int(text) < SMALLEST_TILE_PX:
        raise argparse.ArgumentTypeError(
            f"expected auto, off or pixels from {SMALLEST_TILE_PX}, got {text!r}"
        )
    return int(text)


def photo_size(text: str) -> tuple[int, int]:
    """The argument of `--sizes`: (width, height)."""
    sides = text.lower().split("x")
    width, height = (sides * 2)[:2] if len(sides) in (1, 2) else ("", "")
    if not all(side.isdecimal() and 1 <= int(side) <= 10_000 for side in (width, height)):
        raise argparse.ArgumentTypeError(f"expected a side or WxH of 1 to 10000 pixels, got {text!r}")
    return int(width), int(height)


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
        return int(text)

    return parse


def seed(text: str) -> int:
    """The argument of `--seed`."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)
