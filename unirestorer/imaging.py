"""The only module that knows uint8, EXIF, alpha, 16 bits, padding, views and tiles.

Everywhere else an image is a float32 tensor (B, 3, H, W), RGB, in [0, 1].
"""

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from unirestorer.files import atomic_write

Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor

MAX_MEGAPIXELS = 100
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # a closed list: Pillow would run Ghostscript for EPS
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
WRITABLE = tuple(suffix for suffix in SUFFIXES if suffix != ".gif")  # whose 256 colours are too few
BLEND_PX = 16  # neighbouring tiles overlap by this much
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
LONGEST_PX = {"JPEG": 65_500, "WEBP": 16_383}

_opening = threading.Lock()  # the warnings' filters are shared by all threads


def _error(what: str, got: str, expected: str, do: str) -> ValueError:
    name = " ".join(what.split())  # a file's name may hold line breaks
    return ValueError(f"{name}: got {got}, expected {expected}, {do}")


def _too_large(name: str) -> ValueError:
    return _error(name, f"over {MAX_MEGAPIXELS} megapixels", f"at most {MAX_MEGAPIXELS}", "make it smaller")


def _damaged(name: str) -> ValueError:
    return _error(name, "a damaged or truncated image", "a whole one", "save or download it again")


# Reading


def load_image(source: Source) -> Tensor:
    """Any photo as float32 (1, 3, H, W), RGB in [0, 1].

    Files, bytes, PIL images: EXIF orientation is applied; grey, palette and CMYK become RGB; transparency is
    composited on white; an animation is its first frame; 16-bit grey is divided by 65535, but of 16-bit
    colour Pillow reads the upper 8 bits; colour profiles are ignored. Arrays are (H, W), (H, W, 1) or
    (H, W, 3), tensors (3, H, W) or (1, 3, H, W); both are float in [0, 1] or uint8, arrays also uint16.
    Raises ValueError, in one sentence, for all else and for files or PIL images over `MAX_MEGAPIXELS`.
    """
    if isinstance(source, Tensor):
        return _from_tensor(source, "tensor")
    if isinstance(source, np.ndarray):
        return _from_array(source, "array")
    if isinstance(source, Image.Image):
        return _from_pil(source, "image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_stream(io.BytesIO(source), "image")
    if isinstance(source, str | os.PathLike):
        path = Path(os.fsdecode(source))
        name = path.name or str(path)
        try:
            with path.open("rb") as file:
                return _from_stream(file, name)
        except OSError as error:
            raise _error(name, f"the error {error.strerror!r}", "an image file", "check the path") from None
    if hasattr(source, "read"):
        return _from_stream(source, "image")
    expected = "a path, bytes, an open file, a PIL image, an array or a tensor"
    raise _error("source", type(source).__name__, expected, "convert it to one of these")


def load_profile(path: str | os.PathLike[str]) -> bytes | None:
    """The ICC profile in an image file, for `save_image`; None without one that describes RGB.

    `load_image` keeps the numbers of RGB photos as they are, so their profile still says what they mean;
    grey and CMYK become plain RGB, of which their own profile would be wrong. Never raises for a bad file.
    """
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                profile = image.info.get("icc_profile")
    except Exception:  # as in `load_image`, which has said or will say what is wrong
        return None
    if not isinstance(profile, bytes) or len(profile) < 128:  # not even a profile's header
        return None
    return profile if (profile[36:40], profile[16:20]) == (b"acsp", b"RGB ") else None


def image_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files as they are, folders replaced by the images in them, at all depths and sorted; each path once.

    In a folder the suffix decides and hidden files are left out. A file that is named itself is taken in any
    case, even if it does not exist, so that `load_image` can say what is wrong with it.
    """
    sources, files = [Path(path) for path in paths], []
    for path in sources:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
            files += sorted(p for p in inside if p.is_file())
        else:
            files.append(path)
    if not files:
        names = ", ".join(path.name or str(path) for path in sources) or "paths"
        raise _error(names, "no image", f"files ending in {' '.join(SUFFIXES)}", "name others")
    return list(dict.fromkeys(files))


def _from_stream(file: BinaryIO, name: str) -> Tensor:
    if not file.read(1):
        raise _error(name, "an empty file", "an image", "save or download it again")
    file.seek(0)
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large images: `MAX_MEGAPIXELS` decides
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:  # raised from 179 megapixels on
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise _error(name, "no readable image", ", ".join(FORMATS), "convert it first") from None
    except Exception as error:  # damaged files raise nearly anything, from struct.error to SyntaxError
        raise _damaged(name) from error
    return _from_pil(image, name)


def _from_pil(image: Image.Image, name: str) -> Tensor:
    if image.width * image.height > MAX_MEGAPIXELS * 1_000_000:  # the header says so, nothing is decoded
        raise _too_large(name)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode[0] not in "IF":  # neither 16 or 32 bits nor float
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
        array = np.asarray(image)
    except Exception as error:  # as above
        raise _damaged(name) from error
    if image.mode == "I" and array.size and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)  # how Pillow gives 16 bits from some formats
    return _from_array(array, name)


def _from_array(array: np.ndarray, name: str) -> Tensor:
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise _error(name, f"shape {array.shape}", "(H, W, 3) or (H, W)", "put the channels last")
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = array.astype(np.float32) / 65535
    elif array.dtype != np.uint8 and array.dtype.kind != "f":
        raise _error(name, str(array.dtype), "float in [0, 1], uint8 or uint16", "convert it")
    pixels = torch.from_numpy(np.array(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32))
    return _from_tensor(pixels.permute(2, 0, 1).expand(3, -1, -1), name)


def _from_tensor(x: Tensor, name: str) -> Tensor:
    x = x.detach()[None] if x.ndim == 3 else x.detach()
    if x.ndim != 4 or x.shape[:2] != (1, 3):
        raise _error(name, f"shape {tuple(x.shape)}", "(1, 3, H, W) or (3, H, W)", "pick one image")
    if x.numel() == 0:
        raise _error(name, f"{x.shape[3]}x{x.shape[2]} pixels", "at least 1x1", "choose another image")
    if x.dtype == torch.uint8:
        return x.contiguous().float().div_(255)  # in place: large photos want every copy saved
    if not x.is_floating_point():
        raise _error(name, str(x.dtype), "float in [0, 1] or uint8", "convert it")
    x = x.float()
    low, high = x.min().item(), x.max().item()
    if not (low >= -1e-5 and high <= 1 + 1e-5):  # true for nan, too
        raise _error(name, f"values from {low:g} to {high:g}", "finite ones in [0, 1]", "scale or clip them")
    return x.clamp(0, 1).contiguous()


# Writing


def to_uint8(x: Tensor) -> np.ndarray:
    """(3, H, W) or (1, 3, H, W) in [0, 1] -> (H, W, 3) uint8: rounded half up, clipped; nan is an error."""
    x = x[0] if x.ndim == 4 and x.shape[0] == 1 else x
    if x.ndim != 3 or x.shape[0] != 3:
        raise _error("tensor", f"shape {tuple(x.shape)}", "(3, H, W) or (1, 3, H, W)", "pick one image")
    if x.isnan().any():
        raise _error("tensor", "nan among the pixels", "numbers in [0, 1]", "check what computed them")
    grey = x.detach().float().mul(255).add_(0.5).clamp_(0, 255).byte()
    return grey.permute(1, 2, 0).contiguous().cpu().numpy()


def from_uint8(pixels: np.ndarray | Tensor) -> Tensor:
    """A photo (H, W, 3) or windows (B, H, W, 3), uint8 -> (1, 3, H, W) or (B, 3, H, W) in [0, 1].

    The result lies where the pixels do; `to_uint8` makes the same bytes of it again. Windows stay
    channels-last in memory, as networks like them; a photo does not, like one from a file.
    """
    x = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels
    if x.dtype != torch.uint8:
        raise _error("pixels", str(x.dtype), "uint8", "use load_image for other types")
    x = x.permute(2, 0, 1)[None].contiguous() if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return x.float().div_(255)


def as_file(x: Tensor) -> Tensor:
    """(3, H, W) or (1, 3, H, W) in [0, 1] -> (1, 3, H, W) rounded to 8 bits, as a photo arrives."""
    return from_uint8(to_uint8(x))


def to_pil(x: Tensor) -> Image.Image:
    """(3, H, W) or (1, 3, H, W) in [0, 1] -> an RGB image of 8 bits."""
    return Image.fromarray(to_uint8(x))


def save_image(x: Tensor, path: str | os.PathLike[str], profile: bytes | None = None) -> None:
    """Write (3, H, W) or (1, 3, H, W) in 8 bits; the suffix names the format, without one it is PNG.

    Lossless but for JPEG (quality 95, 4:4:4); `profile` is an ICC profile to embed, which BMP cannot
    hold. The file appears whole or not at all; OSError passes through.
    """
    atomic_write(path, encode_image(x, path, profile))


def encode_image(x: Tensor, path: str | os.PathLike[str], profile: bytes | None = None) -> bytes:
    """The bytes that `save_image` would write to `path`."""
    path = Path(path)
    suffix = path.suffix.lower() or ".png"
    if suffix not in WRITABLE:
        raise _error(path.name, path.suffix, " ".join(WRITABLE), "change the suffix")
    image, name = to_pil(x), Image.registered_extensions()[suffix]
    longest = LONGEST_PX.get(name, 2**31)
    if max(image.size) > longest:
        raise _error(path.name, f"{max(image.size)} px a side", f"at most {longest} in {name}", "use PNG")
    file = io.BytesIO()
    image.save(file, name, icc_profile=profile, **OPTIONS.get(name, {}))
    return file.getvalue()


# Padding and views


def mirrored(index: Tensor, size: int, *, border_twice: bool) -> Tensor:
    """Whole numbers of any size as indices into 0 .. size - 1, mirrored at both ends as often as it takes.

    Beyond the border its pixel comes first, a second time, or (not `border_twice`) the one next to it.
    """
    period = 2 * size if border_twice else max(2 * size - 2, 1)
    index = index % period
    return torch.minimum(index, period - border_twice - index)


def views(x: Tensor, size: int = 224) -> Tensor:
    """What the extractor sees: (B, 3, H, W) -> (B, V, 3, size, size), exact copies of pixels, centre first.

    Nothing is resized: that would destroy the noise. Where the shorter side is at least 1.5 * size, the four
    corners follow (V = 5); where only the longer side is, its two ends (V = 3); else nothing (V = 1). A side
    shorter than `size` is mirrored at both ends.
    """
    for dim in (2, 3):
        missing = max(size - x.shape[dim], 0)
        if missing:
            index = torch.arange(size, device=x.device) - missing // 2
            x = x.index_select(dim, mirrored(index, x.shape[dim], border_twice=False))
    bottom, right = x.shape[2] - size, x.shape[3] - size
    tall, wide = bottom >= size / 2, right >= size / 2
    tops, lefts = [0, bottom] if tall else [bottom // 2], [0, right] if wide else [right // 2]
    ends = [(top, left) for top in tops for left in lefts] if tall or wide else []
    origins = [(bottom // 2, right // 2), *ends]
    return torch.stack([x[:, :, top : top + size, left : left + size] for top, left in origins], dim=1)


# Tiles


def _spans(length: int, tile: int, multiple: int) -> tuple[list[tuple[int, int]], int]:
    """Ranges of at most `tile` that cover `length`, with aligned starts; and how much neighbours overlap."""
    if length <= tile:
        return [(0, length)], 0
    overlap = min(BLEND_PX, tile - multiple, tile // 3)  # never over `step`: at most two ranges meet anywhere
    step = (tile - overlap) // multiple * multiple
    starts = range(0, length - overlap, step)
    return [(start, min(start + step + overlap, length)) for start in starts], overlap


def _ramp(start: int, end: int, length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights of a range, linear where it overlaps a neighbour, else 1; where two meet they add up to 1."""
    weight = like.new_ones(end - start)
    rising = torch.arange(1, overlap + 1).to(like) / (overlap + 1)
    if start > 0:
        weight[:overlap] = rising
    if end < length:
        weight[end - start - overlap :] = 1 - rising
    return weight


def run_tiled(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    halo: int,
    multiple: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """`network(x)` for (B, 3, H, W) of any size, with the memory of one tile besides input and output.

    A tile yields at most `tile` px a side and reads `halo` px more wherever the photo goes on. If that covers
    the network's receptive field, the result is that of the whole photo; neighbours blend over `BLEND_PX`.
    Tiles and halos are aligned to `multiple`, so that a U-net's grid has the same phase in all; the network
    itself pads what does not divide. A photo no larger than a tile is exactly `network(x)`. The result lies
    on the device of `x`; `progress` is told the share done.
    """
    if tile < multiple or halo < 0:
        raise _error("tiles", f"tile {tile}, halo {halo}", f"tile >= {multiple} and halo >= 0", "change them")
    height, width = x.shape[-2:]
    rows, row_overlap = _spans(height, tile, multiple)
    columns, column_overlap = _spans(width, tile, multiple)
    tiles = [(*row, *column) for row in rows for column in columns]
    halo += -halo % multiple
    output = torch.zeros_like(x) if len(tiles) > 1 else network(x)
    for done, (top, bottom, left, right) in enumerate(tiles, start=1):
        if len(tiles) > 1:
            y0, x0 = max(top - halo, 0), max(left - halo, 0)
            y1, x1 = bottom + -bottom % multiple + halo, right + -right % multiple + halo
            part = network(x[:, :, y0:y1, x0:x1])
            part = part[:, :, top - y0 : bottom - y0, left - x0 : right - x0].to(output)
            part = part * _ramp(top, bottom, height, row_overlap, part)[:, None]
            output[:, :, top:bottom, left:right] += part * _ramp(left, right, width, column_overlap, part)
        progress(done / len(tiles))
    return output
