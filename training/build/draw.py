"""Drawn clean photos, for trying the whole training without any data: gradients, shapes, textures and fine
lines.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def draw_photo(seed: int, size: tuple[int, int] = (320, 288)) -> Image.Image:
    """One picture of (width, height) pixels."""
    random = np.random.default_rng(seed)
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width] / max(size)
    ends = random.integers(20, 236, (3, 3))
    shade = ends[0] + (ends[1] - ends[0]) * rows[..., None] + (ends[2] - ends[0]) * 0.5 * columns[..., None]
    grain = random.normal(0, 1, (height // 4, width // 4))
    texture = np.array(Image.fromarray(grain.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    picture = Image.fromarray((shade + 12 * texture[..., None]).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(14):
        x, y, w, h = random.integers(0, width), random.integers(0, height), *random.integers(12, 110, 2)
        colour = tuple(random.integers(0, 256, 3).tolist())
        box = (int(x), int(y), int(x + w), int(y + h))
        kind = random.integers(3)
        if kind == 0:
            draw.rectangle(box, fill=colour)
        elif kind == 1:
            draw.ellipse(box, fill=colour)
        else:
            for k in range(0, int(w), 5):
                draw.line(
                    (box[0] + k, box[1], box[0] + k // 2, box[3]),
                    fill=colour,
                    width=1 + int(random.integers(3)),
                )
    return picture.filter(ImageFilter.GaussianBlur(0.6))


def draw_photos(folder: Path, count: int = 40, seed: int = 0) -> Path:
    """Fill `folder` with `count` drawn photos, unless it already has them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"drawn-{index:03d}.png"
        if not path.is_file():
            draw_photo(seed * 1000 + index).save(path)
    return folder
