"""The model beside what a user would otherwise take: a classical method per degradation, from scikit-image.

The classical methods get the type of the degradation, as instruction mode does; auto mode does not.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import convolve
from skimage import exposure, filters, restoration
from tqdm import tqdm

from training.measure.evaluate import identity_of, machine, store, table
from training.measure.protocol import Case, cases, samples
from unirestorer.checkpoint import Checkpoint, find_checkpoint
from unirestorer.imaging import as_file, load_image, to_uint8
from unirestorer.metrics import psnr
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Task

Method = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) in [0, 1] -> the same


def non_local_means(image: np.ndarray) -> np.ndarray:
    """With the noise estimated from the photo."""
    sigma = noise_level(image)
    return restoration.denoise_nl_means(
        image, h=0.8 * sigma, sigma=sigma, patch_size=5, patch_distance=6, channel_axis=-1
    )


def noise_level(image: np.ndarray) -> float:
    """Standard deviation of the noise in (H, W, 3): Immerkaer's estimate from a mask that ignores edges."""
    mask = np.outer([1, -2, 1], [1, -2, 1])[..., None]
    return float(math.sqrt(math.pi / 2) / 6 * np.abs(convolve(image, mask)).mean())


def median(image: np.ndarray) -> np.ndarray:
    """Over 5 x 5 pixels, channel by channel."""
    window = np.ones((5, 5))
    return np.stack([filters.median(image[..., channel], window) for channel in range(3)], -1)


def sharpen(image: np.ndarray) -> np.ndarray:
    """Unsharp mask, channel by channel: for all at once the library takes rows for channels (0.26)."""
    return np.stack([filters.unsharp_mask(image[..., channel], radius=3) for channel in range(3)], -1)


def stretch(image: np.ndarray) -> np.ndarray:
    """Each channel from its 1st to its 99th percentile."""
    low, high = np.percentile(image, (1, 99), axis=(0, 1))
    return (image - low) / np.maximum(high - low, 1e-3)


METHODS: dict[Task, tuple[str, Method]] = {
    Task.DERAIN: ("median filter", median),
    Task.DEHAZE: ("contrast stretch", stretch),
    Task.DENOISE: ("non-local means", non_local_means),
    Task.DEBLUR: ("unsharp mask", sharpen),
    Task.LOWLIGHT: ("CLAHE", exposure.equalize_adapthist),
    Task.DESNOW: ("median filter", median),
    Task.DEJPEG: ("total variation", lambda x: restoration.denoise_tv_chambolle(x, 0.02, channel_axis=-1)),
}


def beside_classical(model: UniRestorer, data: Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """A row per case of the protocol's group "single-in": mean PSNR (dB) and median seconds per photo.

    Both of the classical method, of auto and of instruction mode, measured photo by photo in turn. Raises
    ValueError when the photos are missing.
    """
    todo = [case for case in cases("single-in") if len(case.tasks) == 1]
    total = sum(min(case.count, limit or case.count) for case in todo)
    with tqdm(total=total, desc="classical", unit="photo") as bar:
        for case in todo:
            yield _case(model, case, data, limit, bar)


def _case(model: UniRestorer, case: Case, data: Path, limit: int | None, bar: tqdm) -> dict[str, Any]:
    task = case.tasks[0]
    name, method = METHODS[task]
    scores: dict[str, list[float]] = {"input": [], "classical": [], "auto": [], "instruction": []}
    seconds: dict[str, list[float]] = {"classical": [], "auto": [], "instruction": []}
    for sample in samples(case, data, limit=limit):
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "classical": lambda x=sample.degraded: classical(method, x),
            "auto": lambda x=sample.degraded: model(x).image,
            "instruction": lambda x=sample.degraded: model(x, tasks=(task,)).image,
        }
        scores["input"].append(psnr(sample.degraded, sample.clean)[0])
        for way, restore in ways.items():
            start = time.perf_counter()
            restored = restore()
            seconds[way].append(time.perf_counter() - start)
            scores[way].append(psnr(restored.cpu(), sample.clean)[0])
        bar.update(1)
    return {
        "case": case.id,
        "method": name,
        "n": len(scores["input"]),
        "seed": case.seed,
        "psnr": {way: round(statistics.mean(values), 3) for way, values in scores.items()},
        "seconds": {way: round(statistics.median(values), 4) for way, values in seconds.items()},
    }


def classical(method: Method, x: torch.Tensor) -> torch.Tensor:
    """`method` on x (1, 3, H, W) in [0, 1]."""
    restored = method(to_uint8(x).astype(np.float64) / 255)
    return as_file(load_image(np.clip(restored, 0, 1)))


def markdown(measured: dict[str, Any] | None) -> list[str]:
    """The card's table; nothing when it was not measured."""
    if not measured:
        return []
    rows = [
        [
            row["case"].partition("/")[2],
            str(row["n"]),
            row["method"],
            *(f"{row['psnr'][way]:.2f}" for way in ("input", "classical", "auto", "instruction")),
            f"{row['seconds']['classical'] / row['seconds']['auto']:.2f}",
        ]
        for row in measured["rows"]
    ]
    title = (
        "**Beside classical methods that are told the type** (PSNR in dB; *time*: theirs as a multiple of "
        "auto mode's, medians of one run)"
    )
    head = ["case", "photos", "method", "input", "classical", "auto", "instruction", "time"]
    return [title, "", *table(head, rows), ""]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `classical` on a command line."""
    parser.add_argument("--checkpoint", required=True, help="folder, name in checkpoints/ or hub id")
    parser.add_argument("--data", type=Path, required=True, help="folder with cbsd68/")
    parser.add_argument("--limit", type=int, help="photos per case, evenly spaced; default all")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, and store in the checkpoint's metrics.json. Raises ValueError for bad input."""
    folder = find_checkpoint(arguments.checkpoint)
    model = UniRestorer.from_pretrained(folder, device=arguments.device)
    rows: Sequence[dict[str, Any]] = list(beside_classical(model, arguments.data, arguments.limit))
    about = {**identity_of(Checkpoint(folder)), **machine(model), "limit": arguments.limit}
    measured = {"about": about, "rows": rows}
    store(folder / "metrics.json", "classical", measured)
    sys.stdout.write("\n".join(markdown(measured)))
