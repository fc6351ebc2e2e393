"""Photos in files, as visitors give them and as browsers show them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from unirestorer.imaging import load_image

SHOWN_PX = 1600  # longest side of what a browser is shown; downloads have full size


def photo_bytes(photo: str | None) -> bytes:
    """What a photo's file holds. Raises ValueError when there is none."""
    if not photo:
        raise ValueError("no photo was given: upload, paste or take one")
    try:
        return Path(photo).read_bytes()
    except OSError:
        raise ValueError("the photo is no longer kept here: upload it again") from None


def read_photo(photo: str | None) -> Tensor:
    """A photo's file as (1, 3, H, W) in [0, 1]. The errors (ValueError) never repeat the file's name."""
    return load_image(photo_bytes(photo))


def shrink(image: Image.Image, longest: int = SHOWN_PX) -> Image.Image:
    """The image itself, or a smaller copy whose longer side is `longest`."""
    if max(image.size) <= longest:
        return image
    scale = longest / max(image.size)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )


def centre(x: Tensor, side: int) -> Tensor:
    """The middle of x (B, 3, H, W), at most `side` pixels each way."""
    top, left = (max(0, (length - side) // 2) for length in x.shape[2:])
    return x[..., top : top + side, left : left + side]


def data_uri(image: Image.Image) -> str:
    """The picture as a JPEG that travels inside the page."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
