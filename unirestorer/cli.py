"""The command line: restore, inspect, degrade and verify, as arguments and words.

Exit codes: 0 done, 1 some photos of several failed, 2 bad input (one line on stderr says what),
130 interrupted.
Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from unirestorer.files import sha256_of
from unirestorer.journal import Journal
from unirestorer.types import Task, named_tasks

if TYPE_CHECKING:
    from unirestorer.batch import Photo, Progress
    from unirestorer.degradation import Recipe

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
CHECKPOINT_HELP = "a folder, a name in checkpoints/, or a hub id user/name"
REVISION_HELP = "branch, tag or commit of a hub id"


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


# Commands: their docstrings are their help


def restore(args: argparse.Namespace) -> int:
    """Restore photos and say which expert did it.

    Several are routed first, then restored expert by expert. A run over a folder that was interrupted goes on
    where it stopped: results are kept that are whole and come from the same file, checkpoint and options.
    OUT/.unirestorer-run.jsonl keeps account of that until all photos are restored.

    examples:
      python -m unirestorer restore rainy.png -o clear.png
      python -m unirestorer restore holiday/ -o restored/ --report report.json
      python -m unirestorer restore rainy.png -o clear/ --task derain dehaze
      python -m unirestorer restore noisy.png -o forced.png --expert 1-2 --tile off
    """
    from unirestorer import UniRestorer, batch
    from unirestorer.checkpoint import find_checkpoint
    from unirestorer.experts import DEFAULT_TILE_PX

    started = time.perf_counter()
    tasks = named_tasks(args.task)
    tile_px = DEFAULT_TILE_PX if args.tile == "auto" else args.tile
    photos = batch.find_photos(args.inputs, args.output)
    targets = batch.find_targets(photos, args.inputs, args.output)
    batch.refuse_overwriting([*targets.values(), args.report], photos)
    folder = find_checkpoint(args.checkpoint, args.revision)
    model = UniRestorer.from_pretrained(folder, device=args.device)
    config = sha256_of(folder / "config.json")  # which holds the hashes of all parts
    settings = [config, tasks and sorted(tasks), args.expert, tile_px]
    journal = Journal(Path(args.output), settings) if batch.is_run(args.inputs) else None
    run = batch.Run(model, photos, targets, tasks, args.expert, tile_px, journal)
    run.restore(args.report)
    if journal is not None:
        print(*run.summary(time.perf_counter() - started), sep="\n", file=sys.stderr)
    return exit_code(run.failures, len(photos))


def inspect(args: argparse.Namespace) -> int:
    """Say how photos would be routed, without restoring them.

    examples:
      python -m unirestorer inspect rainy.png
      python -m unirestorer inspect holiday/ --json > routes.json
    """
    from unirestorer import UniRestorer, batch
    from unirestorer.report import describe

    tasks = named_tasks(args.task)
    photos = batch.find_photos(args.inputs)
    model = UniRestorer.from_pretrained(args.checkpoint, device=args.device, revision=args.revision)
    entries: list[dict[str, Any]] = []

    def decide(path: Path, photo: Photo, progress: Progress) -> str | None:
        decision = model.inspect(photo.x, tasks, seconds={"decode": photo.seconds})
        entries.append({"input": str(path), "size": photo.size, **describe(model, decision)})
        return None if args.json else in_words(entries[-1])

    failures = batch.for_each(photos, decide, alone=not batch.is_run(args.inputs))
    if args.json:
        print(json.dumps(entries, indent=1))
    return exit_code(failures, len(photos))


def degrade(args: argparse.Namespace) -> int:
    """Degrade clean photos, all by one recipe, in the order of the options below.

    examples:
      python -m unirestorer degrade clean.png -o rainy.png --rain medium --noise 25
      python -m unirestorer degrade photos/ -o worse/ --haze 1.2 --jpeg heavy --seed 7 --save-recipe r.json
      python -m unirestorer degrade photos/ -o again/ --recipe r.json
    """
    from unirestorer import batch
    from unirestorer.imaging import save_image

    recipe = make_recipe(args)
    photos = batch.find_photos(args.inputs, args.output)
    targets = batch.find_targets(photos, args.inputs, args.output)
    batch.refuse_overwriting([*targets.values(), args.save_recipe], [*photos, args.recipe])
    if args.save_recipe:
        batch.write_text(args.save_recipe, recipe.to_json())

    def spoil(path: Path, photo: Photo, progress: Progress) -> str:
        degraded = recipe.apply(photo.x)
        with batch.photo_error(path), batch.writing(targets[path]):
            save_image(degraded, targets[path], photo.profile)
        return f"{photos[path]} → {recipe.words}"

    failures = batch.for_each(photos, spoil, alone=not batch.is_run(args.inputs))
    return exit_code(failures, len(photos))


def verify(args: argparse.Namespace) -> int:
    """Check a checkpoint's files and list them: hashes, shapes, a forward pass through every expert.

    examples:
      python -m unirestorer verify single
      python -m unirestorer verify checkpoints/mixed
    """
    from unirestorer import checkpoint

    folder = checkpoint.find_checkpoint(args.name, args.revision)
    parts = checkpoint.verify(folder)
    print(*parts, sep="\n")
    print(f"{folder}: all {len(parts)} parts are sound (hashes, shapes, a forward pass)")
    return 0


def exit_code(failures: list[str], total: int) -> int:
    """List the photos that failed of `total`: 1 if there are any, else 0."""
    if failures:
        complain(f"{len(failures)} of {total} photos failed:")
        print(*(f"  {failure}" for failure in failures), sep="\n", file=sys.stderr)
    return 1 if failures else 0


# Words and numbers


def make_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe in `--recipe`, or the one that the strengths describe. Raises ValueError."""
    from unirestorer.degradation import Recipe, compose

    texts = {flag: text for flag in STRENGTHS if (text := getattr(args, flag)) is not None}
    if args.recipe is None:
        if not texts:
            flags = ", ".join(f"--{flag}" for flag in STRENGTHS)
            raise ValueError(f"nothing to do: give --recipe or one of {flags}")
        strengths = {STRENGTHS[flag][0]: strength(flag, text) for flag, text in texts.items()}
        return compose(strengths, args.seed or 0)
    if texts:
        raise ValueError("--recipe already says what to do: leave the strengths out")
    try:
        recipe = Recipe.from_json(args.recipe.read_text(encoding="utf-8"))
        if any(getattr(step, "real", False) for step in recipe.steps):
            raise ValueError("real rain needs a folder of rain layers, which only training has")
    except ValueError as error:
        raise ValueError(f"{args.recipe}: {error}") from None
    return recipe if args.seed is None else recipe.reseeded(args.seed)


def strength(flag: str, text: str) -> float:
    """A strength in the unit of `RANGES` from a number or a degree, which stands for its middle.

    Raises ValueError.
    """
    from unirestorer.degradation.recipe import degree_strengths

    degrees = degree_strengths(STRENGTHS[flag][0])
    if text in degrees:
        return degrees[text]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"--{flag} {text}: expected a number or {', '.join(degrees)}")
    return number


def in_words(data: dict[str, Any]) -> str:
    """A routing decision, as `inspect --json` has it, in a few lines."""
    from unirestorer.report import percent

    def shares(rows: list[dict[str, Any]], words: str) -> str:
        return "; ".join(f"{words.format(**row)} {percent(row['probability'])}" for row in rows)

    tasks = sorted(data["tasks"].items(), key=lambda item: -item[1])
    lines = {
        "tasks": ", ".join(f"{task} {percent(p)}" for task, p in tasks if p >= 0.005),
        "captions": shares(data["captions"], "{text}"),
        "leaf": shares([data["leaves"][data["leaf"]]], "{name} ({expert})"),
        "levels": shares(data["levels"], "{level} {name}"),
        "expert": f"{data['expert_name']} ({data['expert']})",
        "e_gran": "no percentile: this checkpoint has no map",
    }
    if "map" in data:
        gran, distance = (f"{data[key]:.0f}" for key in ("e_gran_percentile", "distance_percentile"))
        lines["e_gran"] = f"percentile {gran}: less sure than {gran} % of the held-out training photos"
        lines["distance"] = f"percentile {distance}: less familiar than {distance} % of them"
    head = "{}, {} x {} px".format(data["input"], *data["size"])
    return "\n".join([head, *(f"  {name:<9} {line}" for name, line in lines.items())])


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

    def command(run: Callable[[argparse.Namespace], int]) -> Callable[..., argparse.Action]:
        text, _, examples = cleandoc(run.__doc__ or "").partition("\n\nexamples:\n")
        added = commands.add_parser(
            run.__name__,
            help=text.partition("\n")[0],
            description=text,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added.add_argument

    add = command(restore)
    add_photos(add, output=True)
    add_model(add)
    add("--expert", metavar="LEVEL-INDEX", help="use this expert, whatever the router chooses: 0-0, 1-3 ...")
    text = (
        f"side in pixels of what the expert sees at once, at least {SMALLEST_TILE_PX}; off: the whole photo"
    )
    add("--tile", type=tile, default="auto", metavar="auto|N|off", help=f"{text} (default: auto)")
    add("--report", type=Path, metavar="FILE", help="each photo's probabilities, path and timings, as JSON")

    add = command(inspect)
    add_photos(add)
    add_model(add)
    add("--json", action="store_true", help="print JSON instead of words")

    add = command(degrade)
    add_photos(add, output=True)
    for flag, (_, text) in STRENGTHS.items():
        add(f"--{flag}", metavar="STRENGTH", help=text)
    add("--seed", type=whole(0, 2**63 - 1), help="of everything drawn (default: 0, or the recipe's own)")
    add("--recipe", type=Path, metavar="FILE", help="take the degradations from this JSON file instead")
    add("--save-recipe", type=Path, metavar="FILE", help="write the recipe there as JSON")

    add = command(verify)
    add("name", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    add("--revision", help=REVISION_HELP)
    return parser


def add_photos(add: Callable[..., argparse.Action], *, output: bool = False) -> None:
    """The photos to work on and, with `output`, where results go."""
    add("inputs", nargs="+", metavar="IN", help="photos, and folders that are searched at all depths")
    if output:
        text = (
            "a file for one photo, or a folder, which keeps sub-folders and names; "
            "formats that cannot be written become PNG; an input is never overwritten"
        )
        add("-o", "--output", required=True, metavar="OUT", help=text)


def add_model(add: Callable[..., argparse.Action]) -> None:
    """The instruction, and the checkpoint with its device."""
    text = f"instruction: only experts of {', '.join(Task)}"
    add("--task", nargs="+", action="extend", metavar="TASK", help=text)
    add("--checkpoint", default="single", help=f"{CHECKPOINT_HELP} (default: single)")
    add("--revision", help=REVISION_HELP)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")


def tile(text: str) -> int | None | Literal["auto"]:
    """The argument of `--tile`."""
    if text in ("auto", "off"):
        return "auto" if text == "auto" else None
    if not text.isdecimal() or int(text) < SMALLEST_TILE_PX:
        raise argparse.ArgumentTypeError(
            f"expected auto, off or at least {SMALLEST_TILE_PX} px, got {text!r}"
        )
    return int(text)


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
        return int(text)

    return parse
