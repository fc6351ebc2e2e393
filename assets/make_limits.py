"""Draws the limits.jpg of a shipped checkpoint, where it fails: photos clean, as given, and as auto mode
leaves them.

    python -m assets.make_limits CHECKPOINT [FILE]

The photos come with scikit-image and scikit-learn; seeds are fixed, so the same weights draw the same sheet.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from assets.make_contact_sheet import CAPTION_PX, CELL, GAP_PX, INK, PAPER, SEED, clean_photo
from unirestorer import UniRestorer
from unirestorer.checkpoint import LIBRARY_FOLDER
from unirestorer.degradation import Recipe
from unirestorer.degradation.steps import GaussianBlur, Haze, Lowlight, MotionBlur, Noise, Rain, Snow, Step
from unirestorer.files import atomic_write
from unirestorer.imaging import as_file, from_uint8, to_pil
from unirestorer.metrics import psnr

Row = tuple[str, str, tuple[Step, ...]]  # in words, photo, what is done to it
ROWS: dict[str, tuple[Row, ...]] = {
    "single": (
        ("dark by nature", "rocket.jpg", ()),
        ("slight darkness", "coffee.png", (Lowlight(gamma=1.3),)),
        ("blur beyond the training", "astronaut.png", (MotionBlur(length_px=27),)),
        ("rain and haze at once", "chelsea.png", (Rain(streaks=100), Haze(beta=1.0, airlight=0.9))),
        ("out of focus, never trained", "china.jpg", (GaussianBlur(15, 2.5, 2.5),)),
    ),
    "mixed": (
        ("mild haze alone", "china.jpg", (Haze(beta=0.6, airlight=0.9),)),
        ("mild haze and rain", "astronaut.png", (Rain(streaks=70), Haze(beta=0.6, airlight=0.9))),
        ("blur alone", "chelsea.png", (GaussianBlur(15, 2.0, 2.0),)),
        (
            "thick haze beyond the training",
            "china.jpg",
            (Noise(sigma_8bit=30), Haze(beta=1.9, airlight=0.95)),
        ),
        (
            "darkness, noise, snow and haze beyond it",
            "coffee.png",
            (Lowlight(gamma=2.3), Noise(sigma_8bit=45), Snow(density=1.3), Haze(beta=1.8, airlight=0.9)),
        ),
    ),
}


def sheet(model: UniRestorer, rows: Sequence[Row]) -> Image.Image:
    """Some rows under each other, with the chosen expert and the PSNR before and after."""
    width, height = CELL[0] + GAP_PX, CELL[1] + CAPTION_PX + GAP_PX
    picture = Image.new("RGB", (3 * width + GAP_PX, len(rows) * height + GAP_PX), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for row, (name, photo, steps) in enumerate(rows):
        clean = from_uint8(np.asarray(clean_photo(photo)))
        degraded = as_file(Recipe(steps, SEED).apply(clean))
        result = model.restore(degraded)
        words = model.tree.words(int(result.decision.route.expert))
        before, after = (float(psnr(image, clean)[0]) for image in (degraded, result.image))
        given = f"as given, {before:.1f} dB" if steps else "as given, the same"
        cells = ((clean, name), (degraded, given), (result.image, f"{after:.1f} dB, as {words}"))
        for column, (image, caption) in enumerate(cells):
            left, top = GAP_PX + column * width, GAP_PX + row * height
            draw.text((left, top), caption, INK, font)
            picture.paste(to_pil(image), (left, top + CAPTION_PX))
    return picture


def main() -> None:
    name = sys.argv[1]
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else LIBRARY_FOLDER / name / "limits.jpg"
    picture = sheet(UniRestorer.from_pretrained(name, device="cpu"), ROWS[name])
    picture.save(file := io.BytesIO(), "JPEG", quality=75, subsampling="4:4:4", optimize=True)
    atomic_write(target, file.getvalue())
    print(f"{target}: {picture.width}x{picture.height}, {target.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
