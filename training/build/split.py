"""Which photo of the training folder serves which purpose, decided once and committed as `split.json`.

80 % of the photos train the extractor and the experts, 15 % serve the routers' tables and the percentiles,
5 % stop the training early and set thresholds. The list is drawn per source folder; near copies stay
together, and a pair is listed by its clean photo. Rain layers are divided too: one in five is held back for
the protocol's second rain generator.

Remade by `python -m training split --data DIR`, where DIR is the training folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from unirestorer.files import atomic_write
from unirestorer.imaging import image_files, load_image

Part = Literal["experts", "routers", "stop"]
LayerPart = Literal["trained", "held_back"]
Match = tuple[int, int, float]
P = TypeVar("P", bound=str)

SPLIT_FILE = Path(__file__).with_name("split.json")
SEED = 20
SHARES: dict[Part, float] = {"experts": 0.80, "routers": 0.15, "stop": 0.05}
LAYER_SHARES: dict[LayerPart, float] = {"trained": 0.80, "held_back": 0.20}
LAYERS = "rain_streaks"  # the folder of rain layers, which are no photos
CLEAN, DEGRADED = "clean", "degraded"
THUMBNAIL_PX = 32
NEAR_COPY = 0.97  # correlation of grey thumbnails from which two photos count as the same


def make_split(folder: str | Path, seed: int = SEED) -> dict[str, Any]:
    """Divide what is in `folder`: {"seed", "parts": {part: [photo]}, "rain_layers": {part: [layer]}}.

    Paths are relative to `folder`, with forward slashes. A source is a photo's folder; each source is divided
    in the proportions of `SHARES`. The result depends on the pictures, their names and `seed` alone.
    Raises ValueError when the folder is missing or holds no photo.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root}: got no such folder, expected one of training photos, check the path")
    names = sorted(path.relative_to(root).as_posix() for path in image_files([root]))
    photos = [name for name in names if not {LAYERS, DEGRADED} & set(Path(name).parts[:-1])]
    if not photos:
        raise ValueError(f"{root}: got no clean photo, expected at least one, name another folder")
    layers = [name for name in names if LAYERS in Path(name).parts[:-1]]

    copies = near_copies(thumbnails([root / name for name in photos]))
    groups = _components(len(photos), copies)
    parts = _divide([[photos[i] for i in group] for group in groups], SHARES, seed)
    sheared = defaultdict(list)  # one render, sheared to several angles
    for name in layers:
        sheared[layer_sequence(name)].append(name)
    return {"seed": seed, "parts": parts, "rain_layers": _divide(list(sheared.values()), LAYER_SHARES, seed)}


def part_of(relative_path: str) -> Part:
    """The part of a photo named by its path relative to the training folder.

    The degraded photo of a pair belongs to the part of its clean one. A photo that the committed list does
    not hold (of a user's own folder) is placed by a hash of its file's stem, in the same proportions.
    """
    path = relative_path.replace("\\", "/")
    pieces = [CLEAN if piece == DEGRADED else piece for piece in path.split("/")[:-1]]
    listed = _listed()["parts"].get("/".join([*pieces, path.rsplit("/", 1)[-1]]))
    return cast(Part, listed or _by_hash(Path(path).stem, SHARES))


def layer_part_of(name: str) -> LayerPart:
    """The part of a rain layer, by its file's name; one that is not listed goes by a hash of its sequence."""
    listed = _listed()["rain_layers"].get(f"{LAYERS}/{Path(name).name}")
    return cast(LayerPart, listed or _by_hash(layer_sequence(name), LAYER_SHARES))


def rain_layers(part: LayerPart, folder: str | Path) -> list[str]:
    """The layers of `part` in a folder of rain layers, as sorted paths relative to the folder's parent."""
    root = Path(folder)
    names = (path.relative_to(root.parent).as_posix() for path in image_files([root]))
    return [name for name in names if layer_part_of(name) == part]


def layer_sequence(name: str) -> str:
    """What a layer was rendered from: "108-4.png" and "108-8.png" are one render, "108", at two angles."""
    return Path(name).stem.partition("-")[0]


def thumbnails(files: Sequence[Path]) -> Tensor:
    """Grey thumbnails (N, THUMBNAIL_PX, THUMBNAIL_PX) of zero mean and unit norm; a flat picture's is 0."""
    small = [F.adaptive_avg_pool2d(load_image(file).mean(1), THUMBNAIL_PX)[0] for file in files]
    stack = torch.stack(small).double()
    stack = stack - stack.mean((1, 2), keepdim=True)
    norm = stack.flatten(1).norm(dim=1)[:, None, None]
    return torch.where(norm > 1e-6, stack / norm.clamp(min=1e-6), 0.0)


def near_copies(a: Tensor, b: Tensor | None = None, threshold: float = NEAR_COPY) -> list[Match]:
    """(i, j, correlation) of `thumbnails` that show one picture, mirrored or not; within `a` without `b`."""
    other = a if b is None else b
    straight = a.flatten(1) @ other.flatten(1).T
    mirrored = a.flatten(1) @ other.flip(-1).flatten(1).T
    correlation = torch.maximum(straight, mirrored)  # (N, M)
    if b is None:
        correlation = correlation.triu(1)
    pairs = (correlation > threshold).nonzero().tolist()
    return [(i, j, float(correlation[i, j])) for i, j in pairs]


def _components(count: int, edges: Iterable[Match]) -> list[list[int]]:
    """Connected groups of 0 .. count - 1, each ascending, in the order of their first members."""
    label = list(range(count))
    for i, j, _ in edges:
        keep, drop = sorted((label[i], label[j]))
        label = [keep if entry == drop else entry for entry in label]
    groups = defaultdict(list)
    for index, entry in enumerate(label):
        groups[entry].append(index)
    return list(groups.values())


def _divide(groups: list[list[str]], shares: dict[P, float], seed: int) -> dict[P, list[str]]:
    """Whole groups of paths into parts; each source (folder of a group's first path) in the given shares."""
    sources = defaultdict(list)
    for group in groups:
        sources[Path(group[0]).parent.as_posix()].append(group)
    parts: dict[P, list[str]] = {part: [] for part in shares}
    for source, members in sorted(sources.items()):
        random.Random(f"{seed}/{source}").shuffle(members)
        missing = {part: share * sum(map(len, members)) for part, share in shares.items()}
        for group in members:
            part = max(missing, key=lambda name: missing[name])
            missing[part] -= len(group)
            parts[part] += group
    return {part: sorted(paths) for part, paths in parts.items()}


def _by_hash(text: str, shares: dict[Any, float]) -> str:
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    for part, share in shares.items():
        place -= share
        if place < 0:
            return part
    return next(iter(shares))


@lru_cache
def _listed() -> dict[str, dict[str, str]]:
    """The committed list turned around: {"parts": {path: part}, "rain_layers": {path: part}}."""
    data = json.loads(SPLIT_FILE.read_text())
    kinds = ("parts", "rain_layers")
    return {kind: {path: part for part, paths in data[kind].items() for path in paths} for kind in kinds}


# From the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `split` on a command line."""
    parser.add_argument("--data", type=Path, required=True, help="folder of training photos")


def run(arguments: argparse.Namespace) -> None:
    """Write the committed list for a training folder, and count what it holds. Raises ValueError."""
    split = make_split(arguments.data)
    text = json.dumps(split, indent=1) + "\n"
    atomic_write(SPLIT_FILE, text.encode())
    for kind in ("parts", "rain_layers"):
        for part, paths in split[kind].items():
            counts = Counter(Path(path).parent.as_posix() for path in paths)
            sys.stdout.write(f"{part}: {', '.join(f'{source} {n}' for source, n in counts.items())}\n")
