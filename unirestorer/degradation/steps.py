"""One frozen dataclass per degradation, its equation first (paper, supplement B).

A step holds parameters only. Its random field comes from the generator that the recipe hands it, so the same
recipe gives the same bits. Images are (B, 3, H, W) in [0, 1]; one field serves the whole batch, so that a
photo is degraded alike alone and in a batch. Fields are drawn on the CPU and moved to the image's device.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from unirestorer.degradation import fields
from unirestorer.imaging import image_files, load_image, mirrored, to_pil
from unirestorer.types import Task

READING = 0.03  # share of a camera noise's variance on middle grey that does not depend on the light


@dataclass(frozen=True)
class MapFolder:
    """A folder of grey maps (rain layers, snow masks, depth maps, illumination maps) that replaces a drawn
    field.
    """

    files: tuple[Path, ...]

    @classmethod
    def open(cls, folder: str | Path) -> MapFolder:
        """Raises ValueError when the folder is missing or holds no picture."""
        if not Path(folder).is_dir():
            raise ValueError(f"no folder of maps {Path(folder).name}: name one that holds grey pictures")
        return cls(tuple(image_files([folder])))

    def draw(self, height: int, width: int, generator: Generator) -> Tensor:
        """A random window (1, height, width) of a random, randomly mirrored map; a smaller map is mirrored
        outward.
        """
        pick, top, left, flip = torch.randint(0, 2**31, (4,), generator=generator).tolist()
        grey = load_image(self.files[pick % len(self.files)]).mean(1)  # (1, h, w)
        if flip % 2:
            grey = grey.flip(-1)
        rows, columns = (
            mirrored(torch.arange(length) + start % max(size - length + 1, 1), size, border_twice=True)
            for length, size, start in zip((height, width), grey.shape[-2:], (top, left), strict=True)
        )
        return grey[:, rows][:, :, columns]


@dataclass(frozen=True)
class Scene:
    """What a step may look at beside the image: the clean photo, and folders of maps by name (rain, snow,
    depth, light).
    """

    clean: Tensor  # (B, 3, H, W)
    maps: dict[str, MapFolder] = field(default_factory=dict)


@dataclass(frozen=True)
class Lowlight:
    """Low light (Eq. F):  x = y / I * I^gamma,  I the illumination map of the clean photo."""

    task: ClassVar[Task] = Task.LOWLIGHT
    gamma: float

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        if "light" in scene.maps:
            height, width = image.shape[-2:]
            light = scene.maps["light"].draw(height, width, generator)[None].to(image).clamp(0.02, 1)
        else:
            light = fields.illumination_map(scene.clean)  # (B, 1, H, W)
        return image / light * light**self.gamma

    @property
    def strength(self) -> float:
        return self.gamma


@dataclass(frozen=True)
class GaussianBlur:
    """Blur (Eq. A):  x = y (*) k,  k an isotropic (sigma_x = sigma_y) or anisotropic Gaussian.

    `size_px` is the odd side of the kernel.
    """

    task: ClassVar[Task] = Task.DEBLUR
    size_px: int
    sigma_x_px: float
    sigma_y_px: float
    angle_deg: float = 0.0

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        return convolve(
            image, fields.gaussian_kernel(self.size_px, self.sigma_x_px, self.sigma_y_px, self.angle_deg)
        )

    @property
    def strength(self) -> float:
        return max(self.sigma_x_px, self.sigma_y_px)


@dataclass(frozen=True)
class MotionBlur:
    """Motion blur (Eq. A):  x = y (*) k,  k a random camera trajectory of extent `length_px`."""

    task: ClassVar[Task] = Task.DEBLUR
    length_px: float

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        return convolve(image, fields.motion_kernel(self.length_px, generator))

    @property
    def strength(self) -> float:
        return self.length_px


@dataclass(frozen=True)
class Noise:
    """White Gaussian noise (Eq. B):  x = y + n,  n of standard deviation sigma on the 0-255 scale."""

    task: ClassVar[Task] = Task.DENOISE
    sigma_8bit: float

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        noise = torch.randn(image.shape[-3:], generator=generator)  # (3, H, W)
        return image + (self.sigma_8bit / 255) * noise.to(image)

    @property
    def strength(self) -> float:
        return self.sigma_8bit


@dataclass(frozen=True)
class CameraNoise:
    """A sensor's noise, developed:  x = JPEG(f(f^-1(y) + s(y) n)),  f the sRGB curve, n of unit variance and
    interpolated from a Bayer mosaic, s^2 = a f^-1(y) + b (photons and reading).

    `sigma_8bit` is the standard deviation of weak noise on middle grey, 0-255 scale; a `quality` of 100 is
    no JPEG. Not one of the paper's degradations: real photos' noise is neither white nor alike in dark and
    bright.
    """

    task: ClassVar[Task] = Task.DENOISE
    sigma_8bit: float
    quality: int = 100

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        height, width = image.shape[-2:]
        noise = fields.sensor_noise(height, width, generator).to(image)  # (3, H, W)
        light = _linear(image.clamp(0, 1))
        grey = 0.5
        slope = 2.4 * ((grey + 0.055) / 1.055) ** 1.4 / 1.055  # of f^-1 on middle grey
        photons = light / _linear(torch.tensor(grey)).to(image)
        spread = self.sigma_8bit / 255 * slope * ((1 - READING) * photons + READING).sqrt()
        noisy = _displayed((light + spread * noise).clamp(0, 1))
        return noisy if self.quality == 100 else Jpeg(self.quality)(noisy, scene, generator)

    @property
    def strength(self) -> float:
        return self.sigma_8bit


@dataclass(frozen=True)
class Rain:
    """Rain (Eq. C):  x = y + r,  r a layer of streaks, drawn or (`real`) taken from a folder of layers."""

    task: ClassVar[Task] = Task.DERAIN
    streaks: float  # 10 .. 150 trained, 0 .. 200 accepted
    angle_deg: float = 0.0  # from the vertical, -45 .. 45
    length_px: float = 30.0
    width_px: int = 3
    real: bool = False

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        height, width = image.shape[-2:]
        if self.real:
            if "rain" not in scene.maps:
                raise ValueError("this recipe uses real rain layers, but no folder of rain layers was given")
            layer = scene.maps["rain"].draw(height, width, generator)
            layer = layer * (self.streaks / 100)
        else:
            layer = fields.rain_field(
                height, width, self.streaks, self.angle_deg, self.length_px, self.width_px, generator
            )
        return image + layer.to(image)  # (B, 3, H, W) + (1, H, W)

    @property
    def strength(self) -> float:
        return self.streaks


@dataclass(frozen=True)
class Snow:
    """Snow (Eq. E):  x = y * (1 - m) + m,  m a mask of flakes."""

    task: ClassVar[Task] = Task.DESNOW
    density: float

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        height, width = image.shape[-2:]
        if "snow" in scene.maps:
            mask = (scene.maps["snow"].draw(height, width, generator) * self.density).clamp(0, 1)
        else:
            mask = fields.snow_field(height, width, self.density, generator)
        mask = mask.to(image)  # (1, H, W)
        return image * (1 - mask) + mask

    @property
    def strength(self) -> float:
        return self.density


@dataclass(frozen=True)
class Haze:
    """Atmospheric scattering (Eq. D):  x = t * y + a * (1 - t),  t = exp(-beta * depth),  depth in [0, 1]."""

    task: ClassVar[Task] = Task.DEHAZE
    beta: float
    airlight: float = 0.9

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        state = generator.get_state()
        depths = []
        for clean in scene.clean:  # every photo of a batch as if alone
            generator.set_state(state)
            if "depth" in scene.maps:
                depths.append(scene.maps["depth"].draw(image.shape[-2], image.shape[-1], generator))
            else:
                depths.append(fields.depth_from_image(clean.cpu(), generator))
        return self.scatter(image, torch.stack(depths).to(image))

    def scatter(self, image: Tensor, depth: Tensor) -> Tensor:
        """Eq. D for a known depth (B, 1, H, W)."""
        t = torch.exp(-self.beta * depth)  # (B, 1, H, W)
        return t * image + self.airlight * (1 - t)  # (B, 3, H, W)

    @property
    def strength(self) -> float:
        return self.beta


@dataclass(frozen=True)
class Jpeg:
    """JPEG compression at `quality` of libjpeg with 4:2:0 chroma, through Pillow on the CPU."""

    task: ClassVar[Task] = Task.DEJPEG
    quality: int

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        return torch.cat([_jpeg(one, self.quality) for one in image]).to(image)

    @property
    def strength(self) -> float:
        return self.quality


Step = Lowlight | GaussianBlur | MotionBlur | Noise | CameraNoise | Rain | Snow | Haze | Jpeg
STEPS: dict[str, type[Step]] = {
    "lowlight": Lowlight,
    "gaussian_blur": GaussianBlur,
    "motion_blur": MotionBlur,
    "noise": Noise,
    "camera_noise": CameraNoise,
    "rain": Rain,
    "snow": Snow,
    "haze": Haze,
    "jpeg": Jpeg,
}


def _linear(image: Tensor) -> Tensor:
    """Light from displayed values, both in [0, 1] (sRGB)."""
    return torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def _displayed(light: Tensor) -> Tensor:
    """Undo `_linear`."""
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=1e-6) ** (1 / 2.4) - 0.055)


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """`image` (B, 3, H, W) convolved with one `kernel` (K, K), K odd, mirrored at the borders as far as the
    size allows.
    """
    pad = kernel.shape[-1] // 2
    rows, columns = (
        mirrored(torch.arange(-pad, size + pad, device=image.device), size, border_twice=True)
        for size in image.shape[-2:]
    )
    padded = image[..., rows, :][..., columns]
    weight = kernel.flip(0, 1).to(image).expand(image.shape[1], 1, -1, -1)
    return F.conv2d(padded, weight, groups=image.shape[1])


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """(3, H, W) -> (1, 3, H, W)"""
    data = io.BytesIO()
    to_pil(image).save(data, "JPEG", quality=quality, subsampling=2)
    return load_image(data.getvalue())
