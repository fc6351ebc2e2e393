"""Convert a checkpoint of the earlier format, in which shapes and training settings stood side by side.

Only config.json is written anew, the weights stay as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from typing import Any

from training.build.parts import ranges_of
from unirestorer.checkpoint import FORMAT, OLD_FORMAT, find_checkpoint
from unirestorer.config import (
    NETWORK_SHAPES,
    ExtractorShape,
    RouterShape,
    Section,
    convert,
    from_dict,
    network_from_dict,
)
from unirestorer.files import atomic_write
from unirestorer.types import Mode

Data = dict[str, Any]


def converted(old: Data) -> Data:
    """A config of the earlier format in the present one: what is no shape becomes a record of the training.

    The ranges are today's of the mode, which have not changed since. Raises ValueError for an unknown mode
    and for a shape that is not whole.
    """
    mode: Mode = convert(Mode, old.get("setting"), "setting")
    model: Data = {"mode": mode, "ranges": ranges_of(mode)}
    training: Data = dict(old.get("training", {}))

    def move(name: str, kind: type[Section], more: tuple[str, ...] = ()) -> None:
        if name not in old:
            return  # a stage that has not run yet
        shape, settings = split(old[name], kind)
        from_dict(kind, shape, name)
        model[name] = shape | {key: settings.pop(key) for key in more}
        training[name] = {"settings": settings, **training.get(name, {})}

    move("extractor", ExtractorShape, ("captions",))
    if "tree" in old:
        model["tree"] = old["tree"]
    if "experts" in old:
        model["experts"] = {name: expert(shape, f"experts.{name}") for name, shape in old["experts"].items()}
    move("routers", RouterShape)
    return {"format": FORMAT, "model": model, "files": old.get("files", {}), "training": training}


def expert(old: Data, where: str) -> Data:
    """An expert's shape without the keys of other kinds of network."""
    if old["kind"] == "retinexformer" and old["stages"] != 1:
        raise ValueError(f"{where}: a retinexformer of {old['stages']} stages is no longer known")
    shape, _ = split(old, NETWORK_SHAPES[old["kind"]])
    network_from_dict(shape, where)
    return shape


def split(section: Data, kind: type) -> tuple[Data, Data]:
    """The keys of `section` that `kind` has, and the others."""
    keys = {field.name for field in fields(kind)}
    return (
        {key: value for key, value in section.items() if key in keys},
        {key: value for key, value in section.items() if key not in keys},
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `migrate` on a command line."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a name in checkpoints/")


def run(arguments: argparse.Namespace) -> None:
    """Convert the checkpoint's config.json. Raises ValueError."""
    path = find_checkpoint(arguments.checkpoint) / "config.json"
    old = json.loads(path.read_bytes())  # a JSONDecodeError is a ValueError
    if old.get("format") != OLD_FORMAT:
        raise ValueError(f"{path}: expected format {OLD_FORMAT!r}, got {old.get('format')!r:.60}")
    try:
        text = json.dumps(converted(old), indent=1)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r:.100}") from None
    atomic_write(path, text.encode())
    sys.stdout.write(f"{path} is of format {FORMAT} now\n")
