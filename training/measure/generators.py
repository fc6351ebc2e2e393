"""Degradations that training never sees: second generators of rain, snow, haze and blur, and unseen types.

They share no code with `unirestorer.degradation`, so that a model which has merely learnt our procedural
fields is found out. All are pure functions of (image, strength, generator, maps): `image` is (1, 3, H, W) in
[0, 1], `strength` in the unit that the docstring names, `generator` a CPU generator, `maps` the files of a
folder of maps (empty where none is used); the result has the shape and range of `image`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from unirestorer.imaging import load_image, mirrored

Generate = Callable[[Tensor, float, Generator, Sequence[Path]], Tensor]

FULL_SNOW = 0.9  # the density that the fullest snow mask stands for
DEFOCUS_PLANES = 5  # disks that stand for a continuous range of radii


# Second generators of trained tasks


def layer_rain(image: Tensor, strength: float, generator: Generator, maps: Sequence[Path]) -> Tensor:
    """Rain by screen blending of a rendered streak layer:  x = 1 - (1 - y) (1 - s r).

    r is a random, randomly mirrored window of a random layer, enlarged to cover the photo; `strength` = 100 s
    is in percent of the layer's brightness. (Training adds its streaks: x = y + r.)
    """
    height, width = image.shape[-2:]
    layer = load_image(_pick(maps, generator)).mean(1, keepdim=True)  # (1, 1, h, w)
    streaks = _window(_cover(layer, height, width), height, width, generator)
    return 1 - (1 - image) * (1 - strength / 100 * streaks).clamp(0, 1)


def mask_snow(image: Tensor, strength: float, generator: Generator, maps: Sequence[Path]) -> Tensor:
    """Snow from photographed masks (Eq. E):  x = y (1 - m) + m,  m = 1 - prod_k (1 - m_k)^{w_k}.

    Of n masks, in the order of their mean, the k-th stands for density 0.9 k / n. `strength` is the density:
    it is made up of as many windows of the fullest mask as fit (w = 1) and of the emptiest mask that reaches
    the rest, faded by w = rest / its density.
    """
    height, width = image.shape[-2:]
    masks = sorted(
        (load_image(file).mean(1, keepdim=True) for file in maps), key=lambda mask: float(mask.mean())
    )
    if not masks:
        raise ValueError("got no snow mask, expected at least one, name a folder that holds some")
    clear = torch.ones(1, 1, height, width)
    rest = strength
    while rest > 1e-6:
        rank = min(math.ceil(rest / FULL_SNOW * len(masks) - 1e-6), len(masks))
        stands_for = FULL_SNOW * rank / len(masks)
        mask = _window(_cover(masks[rank - 1], height, width), height, width, generator)
        clear = clear * (1 - mask) ** min(rest / stands_for, 1.0)
        rest -= stands_for
    return image * clear + (1 - clear)


def reference_haze(image: Tensor, strength: float, generator: Generator, maps: Sequence[Path]) -> Tensor:
    """Haze (Eq. D) with an estimated depth:  x_c = t y_c + a_c (1 - t),  t = exp(-beta D).

    D = (max i - i) / (max i - min i), i a map of inverse depth (bright = near, as MegaDepth gives it),
    stretched over the photo and randomly mirrored; a_c = a + u_c, a in [0.83, 0.97], u_c in [-0.03, 0.03]:
    slightly coloured air. `strength` = beta.
    """
    inverse = load_image(_pick(maps, generator)).mean(1, keepdim=True)
    near = F.interpolate(inverse, image.shape[-2:], mode="bilinear", align_corners=False)
    near = near.flip(-1) if _uniform(0, 1, generator) < 0.5 else near
    spread = (near.amax() - near.amin()).clamp(min=1e-6)
    t = torch.exp(-strength * (near.amax() - near) / spread)  # (1, 1, H, W)
    air = _uniform(0.83, 0.97, generator) + 0.06 * (torch.rand(1, 3, 1, 1, generator=generator) - 0.5)
    return t * image + air * (1 - t)


def disk_blur(image: Tensor, strength: float, generator: Generator, maps: Sequence[Path]) -> Tensor:
    """Defocus (Eq. A):  x = y (*) k,  k a uniform disk. `strength` = the disk's diameter in px."""
    return _blur_by_disk(image, strength / 2)


# Unseen types


def raindrops(image: Tensor, strength: float, generator: Generator, maps: Sequence[Path]) -> Tensor:
    """Drops on the lens, each a small wide-angle lens that turns the scene over:

    x(p) = (1 - m) y(p) + 0.85 m (y (*) k)(c - 4 (p - c)),   m = clamp((R - |p - c|) / (0.25 R), 0, 1)

    with centre c anywhere, radius R of 2 to 6 % of the shorter side, k a disk of 0.5 % of it; coordinates are
    mirrored at the border. `strength` = the number of drops.
    """
    height, width = image.shape[-2:]
    soft = _blur_by_disk(image, 0.005 * min(height, width))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    result = image
    for _ in range(round(strength)):
        centre_y, centre_x = _uniform(0, height, generator), _uniform(0, width, generator)
        radius = _uniform(0.02, 0.06, generator) * min(height, width)
        dy, dx = rows - centre_y, columns - centre_x
        inside = ((radius - torch.hypot(dy, dx)) / (0.25 * radius)).clamp(0, 1)  # (H, W)
        source_y, source_x = (
            mirrored((c - 4 * d).round().long(), n, border_twice=True)
            for c, d, n in ((centre_y, dy, height), (centre_x, dx, width))
        )
        seen = soft[:, :, source_y, source_x]  # (1, 3, H, W)
        result = (1 - inside) * result + 0.85 * inside * seen
    return result


def banding(image: Tensor, strength: float, generator: Generator, maps: Sequence[Path]) -> Tensor:
    """Too few tones:  x = round(y (L - 1)) / (L - 1). `strength` = L, the number of levels per channel."""
    top = round(strength) - 1
    return (image * top + 0.5).floor() / top


def colour_cast(image: Tensor, strength: float, generator: Generator, maps: Sequence[Path]) -> Tensor:
    """Wrong white balance:  x_c = y_c (1 - s w_c),  w an order of 0, u in [0, 1] and 1. `strength` = s."""
    weights = torch.tensor([0.0, _uniform(0, 1, generator), 1.0])[torch.randperm(3, generator=generator)]
    return image * (1 - strength * weights[:, None, None])


def salt_and_pepper(image: Tensor, strength: float, generator: Generator, maps: Sequence[Path]) -> Tensor:
    """Dead pixels:  x(p) = 0 with chance s / 2, 1 with chance s / 2, else y(p). `strength` = s."""
    dice = torch.rand(image.shape[-2:], generator=generator)  # (H, W)
    image = torch.where(dice < strength / 2, 0.0, image)
    return torch.where(dice > 1 - strength / 2, 1.0, image)


def tilted_defocus(image: Tensor, strength: float, generator: Generator, maps: Sequence[Path]) -> Tensor:
    """Defocus that grows with the distance from a sharp row:  x(p) = sum_k w_k(p) (y (*) disk_k)(p).

    Disk k has radius R k / 4, k = 0 .. 4; w are the linear weights of the local radius
    R |v - v0| / max |v - v0|, v the row and v0 in the middle half. `strength` = R in px.
    """
    height = image.shape[-2]
    distance = (torch.arange(height) + 0.5 - height * _uniform(0.25, 0.75, generator)).abs()
    local = distance / distance.amax() * (DEFOCUS_PLANES - 1)  # (H,) in planes
    result = torch.zeros_like(image)
    for plane in range(DEFOCUS_PLANES):
        weight = (1 - (local - plane).abs()).clamp(min=0)[:, None]  # (H, 1)
        result = result + weight * _blur_by_disk(image, strength * plane / (DEFOCUS_PLANES - 1))
    return result


SECOND: dict[str, Generate] = {
    "layer_rain": layer_rain,
    "mask_snow": mask_snow,
    "reference_haze": reference_haze,
    "disk_blur": disk_blur,
}
UNSEEN: dict[str, Generate] = {
    "raindrops": raindrops,
    "banding": banding,
    "colour_cast": colour_cast,
    "salt_and_pepper": salt_and_pepper,
    "tilted_defocus": tilted_defocus,
}


def disk(radius_px: float) -> Tensor:
    """Kernel (K, K), K odd, sum 1: a pixel weighs clamp(r + 0.5 - its distance from the centre, 0, 1)."""
    reach = max(math.ceil(radius_px - 0.5), 0)
    offset = torch.arange(-reach, reach + 1)
    weight = (radius_px + 0.5 - torch.hypot(offset[:, None].float(), offset[None, :].float())).clamp(0, 1)
    return weight / weight.sum()


def _blur_by_disk(image: Tensor, radius_px: float) -> Tensor:
    """Convolution in the Fourier domain; borders are mirrored."""
    kernel = disk(radius_px)
    reach = kernel.shape[0] // 2
    rows, columns = (
        mirrored(torch.arange(-reach, size + reach), size, border_twice=True) for size in image.shape[-2:]
    )
    padded = image[:, :, rows][..., columns]  # (1, 3, H + 2 reach, W + 2 reach)
    size = padded.shape[-2:]
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, s=size), s=size)
    return blurred[..., 2 * reach :, 2 * reach :].clamp(0, 1)


def _cover(grey: Tensor, height: int, width: int) -> Tensor:
    """`grey` (1, 1, h, w) enlarged, if needed, until it covers height x width."""
    factor = max(height / grey.shape[-2], width / grey.shape[-1])
    if factor <= 1:
        return grey
    size = (max(height, round(grey.shape[-2] * factor)), max(width, round(grey.shape[-1] * factor)))
    return F.interpolate(grey, size, mode="bilinear", align_corners=False)


def _window(grey: Tensor, height: int, width: int, generator: Generator) -> Tensor:
    """A random, randomly mirrored window (1, 1, height, width)."""
    top = int(_uniform(0, grey.shape[-2] - height + 1, generator))
    left = int(_uniform(0, grey.shape[-1] - width + 1, generator))
    window = grey[..., top : top + height, left : left + width]
    return window.flip(-1) if _uniform(0, 1, generator) < 0.5 else window


def _pick(maps: Sequence[Path], generator: Generator) -> Path:
    if not maps:
        raise ValueError("got no map, expected at least one picture, name a folder that holds some")
    return maps[int(torch.randint(len(maps), (1,), generator=generator))]


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))
