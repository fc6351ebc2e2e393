"""Procedural fields of the degradations (supplement section B): rain, snow, depth, illumination, kernels.

Every function is pure: the same parameters and state of the CPU generator give the same bits. Fields are
float32 CPU tensors (only `illumination_map` follows its input's device); their cost grows with the area.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# Three distances of rain: streaks per unit of strength, and scales of their length, width and brightness.
RAIN_LAYERS = ((0.25, 1.35, 1.1, 1.5), (0.75, 1.0, 0.85, 1.05), (2.0, 0.65, 0.6, 0.7))
Size = tuple[int, int]  # height, width
CHUNK = 1 << 18  # pixels drawn at once by `_stamp`
SCENE_SIDE = 768  # a depth scene is laid out at most this large, then enlarged


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _scalar(low: float, high: float, generator: Generator) -> float:
    return float(_uniform(1, low, high, generator))


def _scatter(size: Size, reach: Size, per_pixel: float, generator: Generator) -> Tensor:
    """(2, n) random centres y, x in pixels, up to `reach` outside the frame too: its edges cut marks."""
    box = [s + 2 * r for s, r in zip(size, reach, strict=True)]
    count = int(per_pixel * box[0] * box[1] + _scalar(0, 1, generator))
    return torch.stack([_uniform(count, -r, s + r, generator) for s, r in zip(size, reach, strict=True)])


def _stamp(size: Size, reach: Size, centres: Tensor, marks: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    """(H, W) sum of n marks, valued `draw(dy, dx, *marks)` at pixel offsets dy, dx; `marks` is (P, n)."""
    pad_y, pad_x = 2 * reach[0] + 1, 2 * reach[1] + 1
    stride = size[1] + 2 * pad_x
    canvas = torch.zeros((size[0] + 2 * pad_y) * stride)
    ky = torch.arange(-reach[0], reach[0] + 1)[:, None]
    kx = torch.arange(-reach[1], reach[1] + 1)
    step = max(1, CHUNK // (len(ky) * len(kx)))
    for centre, mark in zip(centres.split(step, dim=1), marks.split(step, dim=1), strict=True):
        corner = centre.floor()
        fraction_y, fraction_x = (centre - corner)[:, :, None, None]
        value = draw(ky - fraction_y, kx - fraction_x, *mark[:, :, None, None])  # (n, kh, kw)
        first = (corner[0].long() + pad_y) * stride + corner[1].long() + pad_x
        index = first[:, None, None] + (ky * stride + kx)
        canvas.index_add_(0, index.flatten(), value.flatten())  # one-dimensional: serial, hence deterministic
    return canvas.view(-1, stride)[pad_y : pad_y + size[0], pad_x : pad_x + size[1]].clone()


def _streak(dy: Tensor, dx: Tensor, angle: Tensor, half: Tensor, sigma: Tensor, peak: Tensor) -> Tensor:
    along = (dy * angle.cos() + dx * angle.sin()) / half
    across = (dx * angle.cos() - dy * angle.sin()) / sigma
    return peak * (1 - along * along).clamp_min_(0) * torch.exp(-0.5 * across * across)


def rain_field(
    height: int,
    width: int,
    strength: float,
    angle_deg: float,
    length_px: float,
    width_px: float,
    generator: Generator,
) -> Tensor:
    """Streak layer r of rain, x = clip(y + r) (section B, Eq. C). Returns (1, H, W) in [0, 1].

    `strength` is the number of distinct streaks per 256 x 256 px (twice as many faint far ones come on top);
    `angle_deg` is their slope from the vertical (positive falls to the right), `width_px` (3..11) the size of
    the Gaussian across them. They differ in length, brightness and distance.
    """
    field = torch.zeros(height, width)
    slope = math.radians(min(abs(angle_deg), 86))
    for per_strength, long, wide, bright in RAIN_LAYERS:
        half, sigma = max(0.5 * length_px * long, 1.0), (0.2 + 0.14 * width_px) * wide
        reach = (
            math.ceil(1.2 * half * math.cos(max(slope - 0.05, 0)) + 2.5 * sigma * math.sin(slope) + 1),
            math.ceil(1.2 * half * math.sin(slope + 0.05) + 2.5 * sigma),
        )
        centres = _scatter((height, width), reach, per_strength * max(strength, 0) / 256**2, generator)
        count = centres.shape[1]
        peak = 0.44 * bright * (max(strength, 0) / 80) ** 0.1 * (5 / max(width_px, 1)) ** 0.5
        marks = torch.stack(
            [
                torch.deg2rad(angle_deg + _uniform(count, -2, 2, generator)),
                half * _uniform(count, 0.6, 1.15, generator),
                torch.full((count,), sigma),
                peak * _uniform(count, 0.15, 1, generator) ** 1.5,
            ]
        )
        field += _stamp((height, width), reach, centres, marks, _streak)
    return field.clamp_(0, 1)[None]


def _flake(dy: Tensor, dx: Tensor, *mark: Tensor) -> Tensor:
    """Optical depth of a flake: -log of the share of light that passes, so that overlapping flakes add up."""
    radius, opacity, tilt, stretch, lobe, turn, rim = mark
    along = (dy * tilt.cos() + dx * tilt.sin()) / stretch
    across = dx * tilt.cos() - dy * tilt.sin()
    theta = torch.atan2(across, along) + turn
    outline = 1 + lobe * (torch.cos(2 * theta) + torch.cos(5 * theta + turn) / 3)
    inside = ((1 + rim - torch.hypot(along, across) / radius * outline) / (2 * rim)).clamp_(0, 1)
    return -torch.log1p(-opacity * inside * inside * (3 - 2 * inside))


def snow_field(height: int, width: int, density: float, generator: Generator) -> Tensor:
    """Mask m of snow, x = y (1 - m) + m (section B, Eq. E, for Snow100K). Returns (1, H, W) in [0, 1].

    `density` 0 is no snow, about 0.3 / 0.6 / 0.9 are Snow100K's S / M / L, 1.5 is a blizzard: more and larger
    flakes. Three classes: specks, soft irregular flakes stretched along the wind, blurred near flakes.
    """
    wind_deg, stretch = _scalar(-60, 60, generator), _scalar(1, 1.8, generator)
    grow = 0.75 + 0.5 * density
    # flakes per pixel, radius in px (low, high), opacity (low, high), softness of the rim
    classes = (
        (0.030 * density, 0.5, 1.1, 0.1, 0.6, 0.9),
        (0.0035 * density, 1.1, 3.0, 0.35, 0.95, 0.5),
        (0.00012 * density**1.5, 4.0, 11.0, 0.15, 0.5, 0.25),
    )
    depth = torch.zeros(height, width)
    for per_pixel, small, large, faint, dense, rim in classes:
        reach = math.ceil(large * grow * stretch * (1 + rim) + 1)
        centres = _scatter((height, width), (reach, reach), per_pixel, generator)
        count = centres.shape[1]
        marks = torch.stack(
            [
                grow * (small + (large - small) * torch.rand(count, generator=generator) ** 2),
                _uniform(count, faint, dense, generator),
                torch.deg2rad(wind_deg + _uniform(count, -25, 25, generator)),
                torch.full((count,), stretch),
                _uniform(count, 0, 0.25, generator),
                _uniform(count, 0, 2 * math.pi, generator),
                torch.full((count,), rim),
            ]
        )
        depth += _stamp((height, width), (reach, reach), centres, marks, _flake)
    return (1 - torch.exp(-depth)).clamp_(0, 1)[None]


def _smooth_noise(height: int, width: int, cells: int, generator: Generator) -> Tensor:
    """(H, W) smooth noise in about [-1, 1] with `cells` bumps per side."""
    grid = torch.rand(1, 1, cells + 1, cells + 1, generator=generator) * 2 - 1
    return F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=True)[0, 0]


def _stretched(field: Tensor) -> Tensor:
    low, high = field.amin(), field.amax()
    return (field - low) / (high - low) if high - low > 1e-6 else field.clamp(0, 1)


def _ground(v: Tensor, horizon: float, steepness: float) -> Tensor:
    """Depth of level ground at image height v (0 top, 1 bottom): 1 to the horizon, then like 1 / (v - h)."""
    return steepness / (steepness + (v - horizon).clamp_min(0))


def depth_field(height: int, width: int, generator: Generator) -> Tensor:
    """A plausible scene depth D (section B, Eq. D, for MegaDepth). Returns (1, H, W) in [0, 1], 1 = far.

    Ground rising towards a horizon, hills and sky, or a room's walls; then upright objects with crisp edges,
    as far away as the ground that they stand on, and a little low-frequency relief.
    """
    scale = min(1.0, SCENE_SIDE / max(height, width))
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    v = ((torch.arange(rows) + 0.5) / rows)[:, None]
    u = ((torch.arange(columns) + 0.5) / columns)[None, :]
    horizon, steepness = _scalar(0.15, 0.6, generator), _scalar(0.12, 0.4, generator)
    if _scalar(0, 1, generator) < 0.3:  # a room or a street: four walls around a far end
        centre, end = _scalar(0.25, 0.75, generator), _scalar(0.12, 0.35, generator)
        wall = torch.maximum((u - centre).abs() / 0.9, (v - horizon).abs())
        scene = end / wall.clamp_min(end)
    else:
        hills = horizon - 0.12 * (1 + _smooth_noise(1, columns, 6, generator)) * _scalar(0, 1, generator)
        scene = torch.where(v < hills, 1.0, 0.85 * _ground(v, horizon, steepness)).expand(rows, columns)
    ragged = _smooth_noise(rows, columns, 14, generator)
    feet = horizon + (1 - horizon) * _uniform(int(_scalar(2, 9, generator)), 0.05, 1, generator)
    for base in sorted(feet.tolist()):  # far to near
        distance = 0.85 * float(_ground(torch.tensor(base), horizon, steepness))
        tall, wide = ((1 - distance) * _scalar(*span, generator) for span in ((0.3, 1.6), (0.1, 0.6)))
        middle, roundness = _scalar(0, 1, generator), _scalar(2, 8, generator)
        dv, du = (v - base + tall / 2) / (tall / 2), (u - middle) / (wide / 2)
        inside = (dv.abs() ** roundness + du.abs() ** roundness) < 1 + 0.6 * ragged
        scene = torch.where(inside & (scene > distance), distance, scene)
    scene = scene * (1 + 0.08 * _smooth_noise(rows, columns, 4, generator))
    scene = F.interpolate(scene[None, None], size=(height, width), mode="bilinear", align_corners=False)[0]
    return _stretched(scene)


def _box(x: Tensor, radius: int) -> Tensor:
    """Mean over a (2r+1)^2 window, cut at the border. (B, C, H, W) -> (B, C, H, W)"""
    size = 2 * radius + 1
    x = F.avg_pool2d(x, (size, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, size), 1, (0, radius), count_include_pad=False)


def _guided(guide: Tensor, target: Tensor, radius: int, epsilon: float) -> Tensor:
    """Fast guided filter (He and Sun 2015): `target` smoothed along edges of `guide`, (B, 1, H, W) each."""
    height, width = guide.shape[-2:]
    factor = max(1, radius // 4)
    size = (-(-height // factor), -(-width // factor))
    radius = max(1, round(radius / factor))
    x, y = (F.interpolate(image, size=size, mode="area") for image in (guide, target))
    mean_x, mean_y = _box(x, radius), _box(y, radius)
    variance = (_box(x * x, radius) - mean_x * mean_x).clamp_min(0)
    slope = (_box(x * y, radius) - mean_x * mean_y) / (variance + epsilon)
    offset = mean_y - slope * mean_x
    lines = _box(torch.cat([slope, offset], dim=1), radius)
    lines = F.interpolate(lines, size=(height, width), mode="bilinear", align_corners=False)
    return lines[:, :1] * guide + lines[:, 1:]


def depth_from_image(clean: Tensor, generator: Generator) -> Tensor:
    """Depth D for a photo (section B, Eq. D): (3, H, W) in [0, 1] -> (1, H, W) in [0, 1], 1 = far.

    Haze uses this. It is no estimate of the true depth: random weights mix the height in the frame, bright
    smooth sky-like areas and a `depth_field`; a guided filter snaps the mixture to the photo's edges.
    """
    height, width = clean.shape[-2:]
    clean = clean.detach().to("cpu", torch.float32)
    v = ((torch.arange(height) + 0.5) / height)[:, None]
    bright, dark = clean.amax(dim=0), clean.amin(dim=0)
    grey = (0.299 * clean[0] + 0.587 * clean[1] + 0.114 * clean[2])[None, None]
    level = _box(grey, 2)
    texture = (_box(grey * grey, 2) - level * level).clamp_min(0).sqrt()[0, 0]
    blue = (clean[2] - clean[0]).clamp(-0.5, 0.5)  # warm, lit things are not sky
    sky = torch.exp(-25 * texture) * bright * (0.5 * dark + blue + 0.3).clamp_min(0) * (1.25 - v).clamp(0, 1)
    perspective = _ground(v, _scalar(0.1, 0.5, generator), _scalar(0.2, 0.6, generator)).expand(height, width)
    weights = [_scalar(*span, generator) for span in ((0.35, 0.65), (0.4, 0.9), (0.0, 0.1), (0.03, 0.16))]
    cues = (perspective, sky, bright, depth_field(height, width, generator)[0])
    mixture = sum((w * cue for w, cue in zip(weights, cues, strict=True)), torch.zeros(height, width))
    near, radius = _scalar(0, 0.25, generator), max(2, min(height, width) // 10)
    return near + (1 - near) * _stretched(_guided(grey, mixture[None, None], radius, 4e-3)[0])


def illumination_map(image: Tensor) -> Tensor:
    """Illumination I of x = y / I * I^gamma (section B, Eq. F): (B, 3, H, W) -> (B, 1, H, W) in [0.02, 1].

    The brightest channel, smoothed along its own edges (the paper takes RetinexFormer's map).
    """
    brightest = image.amax(dim=1, keepdim=True)
    radius = max(2, min(image.shape[-2:]) // 16)
    return _guided(brightest, brightest, radius, 3e-2).clamp(0.02, 1)


def sensor_noise(height: int, width: int, generator: Generator) -> Tensor:
    """(3, H, W) noise of unit variance as a camera develops it: drawn for each pixel of a Bayer mosaic, its
    missing colours interpolated, so that neighbours agree and specks are coloured.
    """
    drawn = torch.randn(height, width, generator=generator)
    y, x = torch.arange(height)[:, None] % 2, torch.arange(width) % 2
    red, blue = (y == 0) & (x == 0), (y == 1) & (x == 1)
    seen = torch.stack((red, ~(red | blue), blue)).float()  # (3, H, W)
    tent = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).expand(3, 1, 3, 3)
    weight, values = F.conv2d(torch.stack((seen, seen * drawn)), tent, padding=1, groups=3)
    variance = torch.tensor([9 / 16, 9 / 32, 9 / 16])  # of the interpolated colours, mean over the mosaic
    return values / weight.clamp(min=1) / variance.sqrt()[:, None, None]


def motion_kernel(length_px: float, generator: Generator) -> Tensor:
    """Camera-shake kernel k of Eq. A: (K, K) with K odd, sum 1, centred on its mass.

    A random path whose two farthest points span `length_px` pixels: mostly a slightly bent line, else shaky.
    """
    steps = 256
    shaky = _scalar(0, 1, generator) < 0.25
    bend = _scalar(-2.5, 2.5, generator) if shaky else _scalar(-0.7, 0.7, generator)
    jitter = torch.randn(8, generator=generator).double() * (0.8 if shaky else 0.12)
    speed = _uniform(8, 0.3 if shaky else 0.6, 1.0, generator).double()
    curves = torch.stack([jitter, speed])[None]
    heading, speed = F.interpolate(curves, size=steps, mode="linear", align_corners=True)[0]
    heading = heading + torch.linspace(-0.5, 0.5, steps).double() * bend + _scalar(0, 2 * math.pi, generator)
    path = torch.stack([heading.sin(), heading.cos()], dim=1).cumsum(dim=0)
    path = path * (max(length_px, 1) - 1) / (path[:, None] - path).square().sum(dim=-1).amax().sqrt()
    weight = speed.reciprocal()  # a slow stretch of the path is exposed longer
    weight = weight / weight.sum()
    path = path - (weight[:, None] * path).sum(dim=0)
    half = math.ceil(float(path.abs().amax()) - 1e-9)
    pixel = torch.arange(-half, half + 1).double()
    tent_y, tent_x = ((1 - (pixel[:, None] - p).abs()).clamp_min(0) for p in path.unbind(dim=1))  # (K, steps)
    return (tent_y[:, None] * tent_x * weight).sum(dim=-1).float()


def gaussian_kernel(size_px: int, sigma_x: float, sigma_y: float, angle_deg: float) -> Tensor:
    """Gaussian kernel k of Eq. A: (K, K), K = `size_px` odd, sum 1; `sigma_x` (px) lies along `angle_deg`."""
    pixel = torch.arange(size_px, dtype=torch.float64) - size_px // 2
    y, x = pixel[:, None], pixel[None, :]
    angle = math.radians(angle_deg)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    return (kernel / kernel.sum()).float()
