"""Photos in, corpora of degraded windows out.

A folder of training photos is read by name: every folder `X/clean` beside `X/degraded` holds pairs
(`rain100l` and `derain_pairs` for derain, `lowlight_pairs` for lowlight), `rain_streaks` holds real rain
layers, all else are clean photos. A corpus is two arrays of windows (degraded and clean, uint8) and a plan
that says where each window comes from; the plan is drawn first, so rendering can stop and resume at any
window.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.build.split import LAYERS, layer_part_of, part_of
from training.config import CorpusConfig
from unirestorer.degradation import MapFolder, Recipe, draw_recipe
from unirestorer.degradation.recipe import CLEAN_CAPTION, REAL_RAIN, child_generator
from unirestorer.files import atomic_write
from unirestorer.imaging import from_uint8, image_files, load_image, mirrored, to_uint8
from unirestorer.types import Mode, Task

PAIR_TASKS = {"rain100l": Task.DERAIN, "derain_pairs": Task.DERAIN, "lowlight_pairs": Task.LOWLIGHT}
PAIR_CAPTIONS = {Task.DERAIN: f"a photo with {REAL_RAIN}", Task.LOWLIGHT: "a photo with real low light"}
Job = TypeVar("Job")
Result = TypeVar("Result")
PAIR_WINDOWS = 12  # windows per real pair, together one recipe


@dataclass(frozen=True)
class Photos:
    """The photos of one part of the split, by path relative to `folder`."""

    folder: Path
    clean: tuple[str, ...]
    pairs: tuple[tuple[str, str, Task], ...]  # clean, degraded, task
    rain: tuple[Path, ...] = ()  # real rain layers for training

    @property
    def maps(self) -> dict[str, MapFolder]:
        return {"rain": MapFolder(self.rain)} if self.rain else {}


def find_photos(folder: Path, part: str) -> Photos:
    """Photos of `part` ("experts", "routers" or "stop") below `folder`.

    Raises ValueError when the folder is missing or holds no photo of that part.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: name the folder of training photos")
    clean, pairs = [], []
    for path in image_files([folder]):
        relative = path.relative_to(folder)
        if LAYERS in relative.parts or "degraded" in relative.parts:
            continue
        name = relative.as_posix()
        if part_of(name) != part:
            continue
        clean.append(name)
        partner = _degraded_partner(path) if path.parent.name == "clean" else None
        if partner and path.parent.parent.name in PAIR_TASKS:
            task = PAIR_TASKS[path.parent.parent.name]
            pairs.append((name, partner.relative_to(folder).as_posix(), task))
    if not clean:
        raise ValueError(
            f"no clean photo for {part} found in {folder}: put at least 40 photos (png, jpg, webp) there"
        )
    layers = image_files([folder / LAYERS]) if (folder / LAYERS).is_dir() else []
    layers = tuple(layer for layer in layers if layer_part_of(layer.name) == "trained")
    return Photos(folder, tuple(clean), tuple(pairs), layers)


def _degraded_partner(path: Path) -> Path | None:
    folder = path.parent.parent / "degraded"
    return next(
        (
            folder / f"{path.stem}{s}"
            for s in (path.suffix, ".webp", ".png", ".jpg")
            if (folder / f"{path.stem}{s}").is_file()
        ),
        None,
    )


@dataclass(frozen=True)
class Row:
    """One window of a corpus: photo, recipe and place. `source` of a real pair is its degraded photo."""

    recipe: int  # index into Corpus.recipes; -1 = an undegraded photo
    photo: str
    seed: int  # of the random fields and of the window's place
    source: str = ""


@dataclass(frozen=True)
class Entry:
    """What a corpus' rows share: a drawn recipe, or a real pair of photos."""

    tasks: tuple[str, ...]
    caption: str
    recipe: dict[str, Any] | None  # Recipe.to_dict(), None for a real pair


@dataclass
class Corpus:
    """Windows of degraded photos on disk, read through a memory map: `lq[i]` and `hq[i]` are (px, px, 3)
    uint8.
    """

    folder: Path
    entries: list[Entry]
    rows: list[Row]
    lq: np.ndarray
    hq: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def recipe(self) -> np.ndarray:
        """(N,) recipe index of each row, -1 = clean."""
        return np.array([row.recipe for row in self.rows])

    @cached_property
    def captions(self) -> list[str]:
        """Caption of each row."""
        return [self.entries[row.recipe].caption if row.recipe >= 0 else CLEAN_CAPTION for row in self.rows]

    @cached_property
    def task(self) -> np.ndarray:
        """(N,) index of the row's task where it has exactly one, -1 otherwise."""
        order = {task.value: i for i, task in enumerate(Task)}
        single = [order[e.tasks[0]] if len(e.tasks) == 1 else -1 for e in self.entries]
        return np.array([single[row.recipe] if row.recipe >= 0 else -1 for row in self.rows])

    @classmethod
    def build(
        cls, folder: Path, photos: Photos, config: CorpusConfig, mode: Mode, seed: int, workers: int = 2
    ) -> Corpus:
        """Draw the plan, render what is not yet rendered, and open the corpus.

        Raises ValueError when `folder` holds a corpus of another plan.
        """
        folder.mkdir(parents=True, exist_ok=True)
        entries, rows = draw_plan(photos, config, mode, seed)
        plan = {
            "entries": [asdict(e) for e in entries],
            "rows": [asdict(r) for r in rows],
            "px": config.window_px,
        }
        text = json.dumps(plan)
        path = folder / "plan.json"
        if not path.is_file():
            atomic_write(path, text.encode())
        elif path.read_text() != text:
            raise ValueError(
                f"{folder} holds a corpus of other photos or settings: name another folder or delete it"
            )
        shape = (len(rows), config.window_px, config.window_px, 3)
        if not all((folder / f"{name}.npy").is_file() for name in ("lq", "hq")):
            (folder / "done.txt").unlink(missing_ok=True)
        arrays = [_open_array(folder / f"{name}.npy", shape) for name in ("lq", "hq")]
        corpus = cls(folder, entries, rows, *arrays)
        corpus._render(photos, config.window_px, workers)
        return corpus

    def _render(self, photos: Photos, px: int, workers: int) -> None:
        """Render in blocks; `done.txt` holds the count of finished blocks, rewritten after each."""
        block, marker = 64, self.folder / "done.txt"
        done = int(marker.read_text()) if marker.is_file() else 0
        blocks = range(done, -(-len(self.rows) // block))
        if not blocks:
            return
        jobs = [
            (
                photos,
                px,
                [
                    (row, self.entries[row.recipe].recipe if row.recipe >= 0 else None)
                    for row in self.rows[i * block : (i + 1) * block]
                ],
            )
            for i in blocks
        ]
        bar = tqdm(total=len(self.rows), initial=done * block, desc="corpus", unit="photo")
        for index, (lq, hq) in zip(blocks, ordered_map(_render_block, jobs, workers), strict=True):
            place = slice(index * block, index * block + len(lq))
            self.lq[place], self.hq[place] = lq, hq
            self.lq.flush()  # type: ignore[attr-defined]
            self.hq.flush()  # type: ignore[attr-defined]
            atomic_write(marker, str(index + 1).encode())
            bar.update(len(lq))
        bar.close()

    @cached_property
    def pixels(self) -> tuple[Tensor, Tensor]:
        """LQ and HQ windows (N, px, px, 3) uint8 as tensors: the files' maps, until `to` copies them."""
        return torch.from_numpy(self.lq), torch.from_numpy(self.hq)

    def to(self, device: torch.device) -> None:
        """Keep the windows on `device`, so that `cut` works there: a GPU need not wait for its batches."""
        if self.pixels[0].device != device:
            self.pixels = tuple(pixels.to(device) for pixels in self.pixels)  # type: ignore[assignment]

    def draw(self, rows: np.ndarray, px: int, random: np.random.Generator) -> np.ndarray:
        """A random place (..., 4) in each of `rows` (...): row, top, left, and which of the square's eight
        symmetries.
        """
        side = self.lq.shape[1]
        corner = random.integers(0, side - px + 1, (*rows.shape, 2))
        return np.concatenate((rows[..., None], corner, random.integers(0, 8, (*rows.shape, 1))), -1)

    def cut(self, places: Tensor, px: int) -> tuple[Tensor, Tensor]:
        """The windows of side `px` at drawn places (B, 4), mirrored and turned alike: LQ and HQ
        (B, 3, px, px) in [0, 1], channels-last, where the pixels are.
        """
        row, top, left, symmetry = places[:, :, None, None].unbind(1)  # (B, 1, 1) each
        steps = torch.arange(px, device=places.device)
        down, along = steps[:, None].expand(px, px), steps.expand(px, px)  # (px, px)
        turned = symmetry % 2 == 1
        y, x = torch.where(turned, along, down), torch.where(turned, down, along)
        y = top + torch.where(symmetry // 2 % 2 == 1, px - 1 - y, y)
        x = left + torch.where(symmetry // 4 == 1, px - 1 - x, x)
        lq, hq = (from_uint8(pixels[row, y, x]) for pixels in self.pixels)
        return lq, hq

    def batch(self, rows: np.ndarray, px: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Random windows of side `px` out of `rows`: see `draw` and `cut`."""
        places = torch.from_numpy(self.draw(rows, px, random))
        return self.cut(places.to(self.pixels[0].device), px)


def draw_fade(shape: tuple[int, ...], share: float, random: np.random.Generator) -> np.ndarray:
    """How photos of `shape` lose their colours, (..., 2): which channel takes the place of all three, and by
    how many percent; 0 for most, for about `share` of them more, and 100 for half of these.
    """
    percent = (100 * random.uniform(0.0, 2.0, shape)).clip(max=100).astype(int)
    percent[random.random(shape) >= share] = 0
    return np.stack((random.integers(0, 3, shape), percent), -1)


def fade(images: Tensor, drawn: Tensor) -> Tensor:
    """Photos (B, 3, H, W) as black and white film shows them, or old ones in faded colours; `drawn` (B, 2) is
    as in `draw_fade`.

    One channel stands for all three, or is mixed into them: a mean of three would weaken the noise.
    """
    channel, percent = drawn.unbind(1)
    grey = images[torch.arange(len(images), device=images.device), channel].unsqueeze(1)  # (B, 1, H, W)
    return torch.lerp(images, grey.expand_as(images), (percent.to(images) / 100)[:, None, None, None])


def draw_plan(photos: Photos, config: CorpusConfig, mode: Mode, seed: int) -> tuple[list[Entry], list[Row]]:
    """Recipes (the same number per task in "single"), each with windows of different photos; real pairs;
    clean photos.
    """
    random = np.random.default_rng((seed, 1))
    entries: list[Entry] = []
    rows: list[Row] = []

    def add(recipe: Recipe) -> None:
        entries.append(Entry(tuple(sorted(recipe.tasks)), recipe.caption, recipe.to_dict()))
        count = min(config.photos_per_recipe, len(photos.clean))
        for photo in random.choice(len(photos.clean), count, replace=False):
            rows.append(Row(len(entries) - 1, photos.clean[photo], int(random.integers(2**31))))

    tasks: Iterable[Task | None] = list(Task) if mode == "single" else [None] * 7
    for number, task in enumerate(tasks):
        for index in range(config.recipes):
            drawn_seed = seed * 1_000_003 + number * 100_003 + index
            real_rain = bool(photos.rain) and config.band == "in"
            add(draw_recipe(drawn_seed, mode=mode, task=task, band=config.band, real_rain=real_rain))
    if mode == "single" and config.band == "in":
        for clean, degraded, task in photos.pairs:
            entries.append(Entry((task.value,), PAIR_CAPTIONS[task], None))
            rows += [
                Row(len(entries) - 1, clean, int(random.integers(2**31)), degraded)
                for _ in range(PAIR_WINDOWS)
            ]
    for _ in range(config.clean):
        rows.append(Row(-1, photos.clean[random.integers(len(photos.clean))], int(random.integers(2**31))))
    return entries, rows


def _open_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if path.is_file():
        return np.lib.format.open_memmap(path, mode="r+")
    temporary = path.with_suffix(".new")
    np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape).flush()
    with open(temporary, "r+b") as file:  # a full disk should say so now, not kill a write to the map later
        os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
    os.replace(temporary, path)
    return np.lib.format.open_memmap(path, mode="r+")


def _render_block(
    job: tuple[Photos, int, list[tuple[Row, dict[str, Any] | None]]],
) -> tuple[np.ndarray, np.ndarray]:
    """Degraded and clean windows of some rows, (n, px, px, 3) uint8 each."""
    photos, px, rows = job
    pairs = [render_row(photos, row, recipe, px) for row, recipe in rows]
    return np.stack([lq for lq, _ in pairs]), np.stack([hq for _, hq in pairs])


def render_row(
    photos: Photos, row: Row, recipe: dict[str, Any] | None, px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Degrade the whole photo, then cut one window (px, px, 3), so that the JPEG grid's phase varies."""
    clean = at_least(load_image(photos.folder / row.photo), px)
    if row.source:
        degraded = at_least(load_image(photos.folder / row.source), px)
    elif recipe is not None:
        degraded = Recipe.from_dict(recipe).reseeded(row.seed).apply(clean, photos.maps)
    else:
        degraded = clean
    place = child_generator(row.seed, 200)
    top = int(torch.randint(clean.shape[-2] - px + 1, (1,), generator=place))
    left = int(torch.randint(clean.shape[-1] - px + 1, (1,), generator=place))
    window = np.s_[..., top : top + px, left : left + px]
    return to_uint8(degraded[window]), to_uint8(clean[window])


def at_least(image: Tensor, px: int) -> Tensor:
    """Mirror a photo (1, 3, H, W) outward, each side doubled until it has `px` pixels."""
    for dim in (2, 3):
        size = length = image.shape[dim]
        while length < px:
            length *= 2
        if length > size:
            image = image.index_select(dim, mirrored(torch.arange(length), size, border_twice=True))
    return image


def ordered_map(function: Callable[[Job], Result], jobs: list[Job], workers: int) -> Iterable[Result]:
    """`map` over processes of one thread each, in order; in this process when one worker is enough."""
    if workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(function, jobs)
