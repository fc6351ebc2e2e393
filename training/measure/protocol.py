"""What every table measures: fixed in `protocol.json` and rendered photo by photo. All was fixed before
anything was trained, but for the photos in black and white and the mild strengths, which came later.

A case is one line of a table: a degradation at one strength, a mixture of them, a second generator, an unseen
type, real pairs, undegraded photos, or photos in black and white. Its seed follows from its name and the
protocol's seed, and a photo's random fields follow from the case's seed and the photo's place in its folder;
so a subset of photos or cases gives the same bits.

The evaluation folder holds the photo sets (`cbsd68/`, `sunhays/`), the real pairs (`rain100l/`, `sice/`,
`polyu/`, each with `clean/` and `degraded/`), `snow_masks/` and `reference/`. The reference release has its
two maps named the other way round: `light_map_1.jpg` is the inverse depth. Held-back rain layers come from a
folder of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.build.split import rain_layers
from training.measure.generators import SECOND, UNSEEN
from unirestorer.degradation import Recipe, compose
from unirestorer.degradation.recipe import ORDER, Band, child_generator
from unirestorer.degradation.steps import Step
from unirestorer.imaging import SUFFIXES, as_file, image_files, load_image
from unirestorer.types import Mode, Task

PROTOCOL_FILE = Path(__file__).with_name("protocol.json")
GROUPS = (
    *("single-mild", "single-in", "single-out", "single-extra", "mixed-in", "mixed-out"),
    *("second-in", "second-out", "unseen", "real", "clean", "grey"),
)
HELD_BACK_LAYERS = "held-back layers"  # stands for the folder that `samples` is given as `layers`
LUMINANCE, GREEN = (0.299, 0.587, 0.114), (0.0, 1.0, 0.0)
PHOTOS, VARIANTS = 0, 1  # first word of a random stream under a case's seed


@dataclass(frozen=True)
class Case:
    """One line of a table."""

    group: str  # one of GROUPS
    name: str  # the task, mixture, unseen type, or set of real or clean photos
    tasks: tuple[Task, ...]  # that undo it; empty if none of the seven does
    strength: float | None  # in the unit of RANGES or of the second generator; None if drawn or unknown
    band: Band | None  # trained range or held-out; None outside of both
    generator: str  # "recipe", a key of SECOND or UNSEEN, or "file"
    photos: str  # folder of photos, or of pairs
    maps: str | None = None  # folder or file of maps below the evaluation folder, or HELD_BACK_LAYERS

    @property
    def id(self) -> str:
        """Group, name and, if there is one, strength: "single-in/derain-40"."""
        return f"{self.group}/{self.name}" + ("" if self.strength is None else f"-{self.strength:g}")

    @property
    def count(self) -> int:
        """How many photos."""
        return protocol()["photos"][self.photos]

    @property
    def seed(self) -> int:
        return _hash(f"{protocol()['seed']}/{self.id}")

    @property
    def mode(self) -> Mode:
        return "mixed" if self.group.startswith("mixed") else "single"


@dataclass(frozen=True)
class Sample:
    """One photo of a case. `degraded` holds whole 8-bit values, as a file would."""

    name: str
    clean: Tensor  # (1, 3, H, W)
    degraded: Tensor  # (1, 3, H, W)
    tasks: frozenset[Task]
    recipe: Recipe | None  # None where no recipe made it


@lru_cache
def protocol() -> dict[str, Any]:
    """The content of `protocol.json`."""
    return json.loads(PROTOCOL_FILE.read_text())


def cases(*names: str) -> list[Case]:
    """The cases of some groups, or with some ids; without arguments all of them.

    Raises ValueError for a name that is neither, listing the groups.
    """
    everything = list(_all_cases())
    choices = {name for case in everything for name in (case.group, case.id)}
    for name in names:
        if name not in choices:
            raise ValueError(f"unknown group {name!r}: choose among {', '.join(GROUPS)}, or name a case")
    return [case for case in everything if not names or case.group in names or case.id in names]


def _all_cases() -> Iterator[Case]:
    data = protocol()
    for part in ("mild", "in", "out", "extra"):
        band: Band | None = {"mild": None, "out": "out"}.get(part, "in")
        for task, strengths in data["single"][part].items():
            for strength in strengths:
                group, photos = f"single-{part}", data["single"]["photos"]
                yield Case(group, task, (Task(task),), strength, band, "recipe", photos)
    for band in ("in", "out"):
        for name, mixed in data["mixed"]["mixtures"].items():
            tasks = tuple(task for task in ORDER if task in mixed)
            yield Case(f"mixed-{band}", name, tasks, None, band, "recipe", data["mixed"]["photos"])
    photos = data["second"]["photos"]
    for band in ("in", "out"):
        for task, entry in data["second"]["generators"].items():
            generator, maps = entry["generator"], entry["maps"]
            for strength in entry[band]:
                yield Case(f"second-{band}", task, (Task(task),), strength, band, generator, photos, maps)
    for name, strengths in data["unseen"]["strengths"].items():
        for strength in strengths:
            yield Case("unseen", name, (), strength, None, name, data["unseen"]["photos"])
    for name, task in data["real"].items():
        yield Case("real", name, (Task(task),), None, None, "file", name)
    for name in data["clean"]:
        yield Case("clean", name, (), None, None, "recipe", name)
    photos = data["grey"]["photos"]
    yield Case("grey", "undegraded", (), None, None, "recipe", photos)
    for task, strength in data["grey"]["strengths"].items():
        yield Case("grey", task, (Task(task),), strength, "in", "recipe", photos)


def missing(case: Case, data_dir: str | Path, layers: str | Path | None = None) -> str | None:
    """What `case` lacks, in one sentence, or None if it can be rendered."""
    root = Path(data_dir)
    if not root.is_dir():
        return f"{root}: got no such folder, expected the evaluation data, check the path"
    folders = [root / case.photos]
    if case.generator == "file":
        folders = [root / case.photos / part for part in ("clean", "degraded")]
    for folder in folders:
        if not _pictures(folder):
            return f"{folder}: got no photo, expected the photos of {case.id}, put them there"
    if case.maps == HELD_BACK_LAYERS:
        if layers is None:
            return f"got no folder of rain layers, expected one for {case.id}, name it (--layers)"
        if not Path(layers).is_dir() or not rain_layers("held_back", layers):
            return f"{layers}: got no held-back rain layer, expected the layers of {case.id}, check the path"
    elif case.maps and not _pictures(root / case.maps):
        return f"{root / case.maps}: got no map, expected the maps of {case.id}, put them there"
    return None


def samples(
    case: Case, data_dir: str | Path, *, layers: str | Path | None = None, limit: int | None = None
) -> Iterator[Sample]:
    """Render the photos of `case` one at a time; `limit` takes so many of them, evenly spaced.

    `layers` is a folder of rain layers, of which the held-back part is used. Raises ValueError, before the
    first photo, that names the folder or file which is missing.
    """
    problem = missing(case, data_dir, layers)
    if problem:
        raise ValueError(problem)
    if limit is not None and limit < 1:
        raise ValueError(f"got a limit of {limit} photos, expected at least 1")
    return _render(case, Path(data_dir), layers, limit)


def _render(case: Case, root: Path, layers: str | Path | None, limit: int | None) -> Iterator[Sample]:
    folder = root / case.photos
    files = _pictures(folder / "clean" if case.generator == "file" else folder)
    chosen = spaced(range(len(files)), case.count)
    maps: Sequence[Path] = ()
    if case.maps == HELD_BACK_LAYERS and layers is not None:
        maps = [Path(layers).parent / name for name in rain_layers("held_back", layers)]
    elif case.maps:
        maps = _pictures(root / case.maps)
    for index in spaced(chosen, limit or len(chosen)):
        clean = load_image(files[index])
        if case.group == "grey":
            clean = black_and_white(clean, LUMINANCE)
        recipe = None
        if case.generator == "recipe":
            recipe = photo_recipe(case, index, len(files))
            degraded = recipe.apply(clean)
        elif case.generator == "file":
            degraded = load_image(_partner(files[index], folder / "degraded"))
        else:
            generate = {**SECOND, **UNSEEN}[case.generator]
            degraded = generate(clean, case.strength or 0.0, child_generator(case.seed, PHOTOS, index), maps)
        if case.group == "grey":
            degraded = black_and_white(degraded, GREEN)  # a mean of channels would weaken the noise
        yield Sample(files[index].stem, clean, as_file(degraded), frozenset(case.tasks), recipe)


def black_and_white(x: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """x (B, 3, H, W) with one weighed sum of its channels in place of all three, in whole 8-bit values."""
    grey = (x * x.new_tensor(weights)[:, None, None]).sum(1, keepdim=True)
    return as_file(grey.expand_as(x))


def photo_recipe(case: Case, index: int, total: int) -> Recipe:
    """The recipe of photo `index` of `total`: a quarter of them share the steps, each has its own fields."""
    variants = protocol()["variants"]
    steps = variant_steps(case, index * variants // total)
    seed = torch.randint(2**31, (1,), generator=child_generator(case.seed, PHOTOS, index))
    return Recipe(steps, int(seed))


def variant_steps(case: Case, variant: int) -> tuple[Step, ...]:
    """The steps of a variant: the case's strength, or one drawn in its band; every other parameter drawn."""
    strength: float | Band = case.band or "in" if case.strength is None else case.strength
    strengths: dict[Task, float | Band] = dict.fromkeys(case.tasks, strength)
    return compose(strengths, case.seed, case.mode, stream=(VARIANTS, variant, 1)).steps


def spaced(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of `items`, evenly spaced, the first among them."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _pictures(place: Path) -> list[Path]:
    """The pictures directly in a folder, sorted by name, or the one that is named."""
    if place.is_file():
        return [place]
    if not place.is_dir() or not any(path.suffix.lower() in SUFFIXES for path in place.iterdir()):
        return []
    return [path for path in image_files([place]) if path.parent == place]


def _partner(clean: Path, folder: Path) -> Path:
    """The picture in `folder` with the stem of `clean`."""
    for path in _pictures(folder):
        if path.stem == clean.stem:
            return path
    raise ValueError(f"{folder}: got no {clean.stem}, expected the partner of {clean.name}, put it there")


def _hash(text: str) -> int:
    """A whole number in [0, 2^31) that follows from the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1
