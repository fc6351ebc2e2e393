"""Draws assets/degradations.jpg: all seven degradations at three strengths, beside the clean photo.

    python -m assets.make_contact_sheet [FILE]

The photos come with scikit-image and scikit-learn; seeds are fixed, so the sheet is the same every time.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from assets.make_examples import read
from unirestorer.degradation import compose
from unirestorer.files import atomic_write
from unirestorer.imaging import from_uint8, to_pil
from unirestorer.types import Task

CELL, CAPTION_PX, GAP_PX = (336, 224), 22, 6  # width and height of a photo: none is resized after degrading
INK, PAPER = (20, 20, 20), (255, 255, 255)
# Task, photo, equation, unit and strengths (mild to severe, those of the protocol).
ROWS = (
    (Task.DERAIN, "rocket.jpg", "x = y + r", "{:g} streaks", (40, 80, 120)),
    (Task.DEHAZE, "china.jpg", "x = t y + a (1 - t)", "beta {:g}", (0.6, 1.0, 1.4)),
    (Task.DENOISE, "astronaut.png", "x = y + n", "sigma {:g}", (15, 25, 50)),
    (Task.DEBLUR, "chelsea.png", "x = y * k", "{:g} px", (9, 15, 21)),
    (Task.LOWLIGHT, "coffee.png", "x = y / I * I^gamma", "gamma {:g}", (1.5, 2.0, 2.4)),
    (Task.DESNOW, "flower.jpg", "x = y (1 - m) + m", "density {:g}", (0.3, 0.6, 0.9)),
    (Task.DEJPEG, "astronaut.png", "JPEG", "quality {:g}", (40, 20, 10)),
)
SEED = 1


def clean_photo(name: str) -> Image.Image:
    """A photo, reduced to cover one cell."""
    return ImageOps.fit(read(name), CELL, Image.Resampling.LANCZOS, centering=(0.5, 0.3))


def degrade(photo: Image.Image, task: Task, strength: float) -> tuple[Image.Image, str]:
    """The degraded photo and its degree in words. Strengths of a row share one seed: only they differ."""
    recipe = compose({task: strength}, SEED)
    return to_pil(recipe.apply(from_uint8(np.asarray(photo)))), recipe.words


def contact_sheet() -> Image.Image:
    """All rows under each other: the clean photo, then three strengths."""
    width, height = CELL[0] + GAP_PX, CELL[1] + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (4 * width + GAP_PX, len(ROWS) * height + GAP_PX), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, (task, name, equation, unit, strengths) in enumerate(ROWS):
        photo = clean_photo(name)
        cells = [(photo, f"{task}:  {equation}")]
        for strength in strengths:
            picture, words = degrade(photo, task, strength)
            cells.append((picture, f"{words}, {unit.format(strength)}"))
        for column, (picture, caption) in enumerate(cells):
            left, top = GAP_PX + column * width, GAP_PX + row * height
            draw.text((left, top), caption, INK, font)
            sheet.paste(picture, (left, top + CAPTION_PX))
    return sheet


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("degradations.jpg")
    sheet = contact_sheet()
    # Not by save_image: at its quality the sheet would be 1.5 MB.
    sheet.save(file := io.BytesIO(), "JPEG", quality=75, subsampling="4:4:4", optimize=True)
    atomic_write(target, file.getvalue())
    print(f"{target}: {sheet.width}x{sheet.height}, {target.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
