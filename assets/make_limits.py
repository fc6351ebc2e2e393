"""Draws checkpoints/single/limits.jpg, where the shipped `single` fails: photos clean, as given, and as auto
mode leaves them.

    python -m assets.make_limits [FILE]

The photos come with scikit-image and scikit-learn; seeds are fixed, so the same weights draw the same sheet.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from assets.make_contact_sheet import CAPTION_PX, CELL, GAP_PX, INK, PAPER, SEED, clean_photo
from unirestorer import UniRestorer
from unirestorer.checkpoint import LIBRARY_FOLDER
from unirestorer.degradation import Recipe
from unirestorer.degradation.steps import GaussianBlur, Haze, Lowlight, MotionBlur, Rain, Step
from unirestorer.files import atomic_write
from unirestorer.imaging import from_uint8, to_pil, to_uint8
from unirestorer.metrics import psnr

ROWS: tuple[tuple[str, str, tuple[Step, ...]], ...] = (
    ("dark by nature", "rocket.jpg", ()),
    ("slight darkness", "coffee.png", (Lowlight(gamma=1.3),)),
    ("blur beyond the training", "astronaut.png", (MotionBlur(length_px=27),)),
    ("rain and haze at once", "chelsea.png", (Rain(streaks=100), Haze(beta=1.0, airlight=0.9))),
    ("out of focus, never trained", "china.jpg", (GaussianBlur(15, 2.5, 2.5),)),
)


def sheet(model: UniRestorer) -> Image.Image:
    """All rows under each other, with the chosen expert and the PSNR before and after."""
    width, height = CELL[0] + GAP_PX, CELL[1] + CAPTION_PX + GAP_PX
    picture = Image.new("RGB", (3 * width + GAP_PX, len(ROWS) * height + GAP_PX), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for row, (name, photo, steps) in enumerate(ROWS):
        clean = from_uint8(np.asarray(clean_photo(photo)))
        degraded = from_uint8(to_uint8(Recipe(steps, SEED).apply(clean)))     # as a file holds it
        result = model.restore(degraded)
        words = model.tree.words(int(result.route.expert))
        before, after = (float(psnr(image, clean)[0]) for image in (degraded, result.image))
        given = f"as given, {before:.1f} dB" if steps else "as given, the same"
        cells = ((clean, name), (degraded, given), (result.image, f"restored as {words}, {after:.1f} dB"))
        for column, (image, caption) in enumerate(cells):
            left, top = GAP_PX + column * width, GAP_PX + row * height
            draw.text((left, top), caption, INK, font)
            picture.paste(to_pil(image), (left, top + CAPTION_PX))
    return picture


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else LIBRARY_FOLDER / "single" / "limits.jpg"
    picture = sheet(UniRestorer.from_pretrained("single", device="cpu"))
    atomic_write(
        target, lambda file: picture.save(file, "JPEG", quality=75, subsampling="4:4:4", optimize=True)
    )
    print(f"{target}: {picture.width}x{picture.height}, {target.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
