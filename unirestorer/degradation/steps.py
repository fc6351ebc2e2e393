"""One frozen dataclass per degradation, its equation first (paper, supplement B).

A step holds parameters only, none beyond its limits. Its random field comes from the generator that the
recipe hands it, so the same recipe gives the same bits. Images are (B, 3, H, W) in [0, 1]; one field serves
the whole batch, so that a photo is degraded alike alone and in a batch. Fields are drawn on the CPU and moved
to the image's device.
"""

from __future__ import annotations

import dataclasses
import io
from abc import ABC, abstractmethod
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
# Accepted values of every step parameter, wide enough for any use and narrow enough to stay cheap.
LIMITS: dict[str, tuple[float, float]] = {
    "gamma": (1.0, 5.0),
    "size_px": (1, 63),
    "sigma_x_px": (0.1, 20.0),
    "sigma_y_px": (0.1, 20.0),
    "angle_deg": (-180.0, 180.0),
    "sigma_8bit": (0.0, 255.0),
    "streaks": (0.0, 400.0),
    "width_px": (1, 31),
    "density": (0.0, 3.0),
    "beta": (0.0, 5.0),
    "airlight": (0.0, 1.0),
    "quality": (1, 100),
    "length_px": (1.0, 127.0),
}
KINDS = {"bool": (bool, "true or false"), "int": (int, "a whole number"), "float": (int | float, "a number")}


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
        grey = grey.flip(-1) if flip % 2 else grey
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

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the clean photo and of every field for it."""
        return self.clean.shape[2], self.clean.shape[3]


@dataclass(frozen=True)
class Step(ABC):
    """A degradation's parameters, the first of which is its strength.

    Raises ValueError, in one sentence, for a parameter of another type or beyond `LIMITS`.
    """

    kind: ClassVar[str]  # its name in a recipe's JSON
    task: ClassVar[Task]  # what undoes it

    def __post_init__(self) -> None:
        for parameter in dataclasses.fields(self):
            value, name = getattr(self, parameter.name), f"{self.kind}.{parameter.name}"
            kind, words = KINDS[str(parameter.type)]
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):  # a bool is an int
                raise ValueError(f"{name}: expected {words}, got {value!r:.40}")
            low, high = (False, True) if kind is bool else LIMITS[parameter.name]
            if not low <= value <= high:
                raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value!r:.40}")

    @abstractmethod
    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        """Degrade `image` (B, 3, H, W); the result may leave [0, 1]."""

    @property
    def strength(self) -> float:
        """In the unit of `RANGES`."""
        return getattr(self, dataclasses.fields(self)[0].name)


@dataclass(frozen=True)
class Lowlight(Step):
    """Low light (Eq. F):  x = y / I * I^gamma,  I the illumination map of the clean photo."""

    kind = "lowlight"
    task = Task.LOWLIGHT
    gamma: float

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        if "light" in scene.maps:
            light = scene.maps["light"].draw(*scene.size, generator)[None].to(image).clamp(0.02, 1)
        else:
            light = fields.illumination_map(scene.clean)  # (B, 1, H, W)
        return image / light * light**self.gamma


@dataclass(frozen=True)
class GaussianBlur(Step):
    """Blur (Eq. A):  x = y (*) k,  k an isotropic (sigma_x = sigma_y) or anisotropic Gaussian.

    `size_px` is the odd side of the kernel.
    """

    kind = "gaussian_blur"
    task = Task.DEBLUR
    size_px: int
    sigma_x_px: float
    sigma_y_px: float
    angle_deg: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size_px % 2 == 0:
            raise ValueError(f"{self.kind}.size_px: expected an odd number, got {self.size_px}")

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        kernel = fields.gaussian_kernel(self.size_px, self.sigma_x_px, self.sigma_y_px, self.angle_deg)
        return convolve(image, kernel)

    @property
    def strength(self) -> float:
        return max(self.sigma_x_px, self.sigma_y_px)


@dataclass(frozen=True)
class MotionBlur(Step):
    """Motion blur (Eq. A):  x = y (*) k,  k a random camera trajectory of extent `length_px`."""

    kind = "motion_blur"
    task = Task.DEBLUR
    length_px: float

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        return convolve(image, fields.motion_kernel(self.length_px, generator))


@dataclass(frozen=True)
class Noise(Step):
    """White Gaussian noise (Eq. B):  x = y + n,  n of standard deviation sigma on the 0-255 scale."""

    kind = "noise"
    task = Task.DENOISE
    sigma_8bit: float

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        noise = torch.randn(image.shape[-3:], generator=generator)  # (3, H, W)
        return image + (self.sigma_8bit / 255) * noise.to(image)


@dataclass(frozen=True)
class CameraNoise(Step):
    """A sensor's noise, developed:  x = JPEG(f(f^-1(y) + s(y) n)),  f the sRGB curve, n of unit variance and
    interpolated from a Bayer mosaic, s^2 = a f^-1(y) + b (photons and reading).

    `sigma_8bit` is the standard deviation of weak noise on middle grey, 0-255 scale; a `quality` of 100 is
    no JPEG. Not one of the paper's degradations: real photos' noise is neither white nor alike in dark and
    bright.
    """

    kind = "camera_noise"
    task = Task.DENOISE
    sigma_8bit: float
    quality: int = 100

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        noise = fields.sensor_noise(*scene.size, generator).to(image)  # (3, H, W)
        light = _linear(image.clamp(0, 1))
        grey = 0.5
        slope = 2.4 * ((grey + 0.055) / 1.055) ** 1.4 / 1.055  # of f^-1 on middle grey
        photons = light / _linear(torch.tensor(grey)).to(image)
        spread = self.sigma_8bit / 255 * slope * ((1 - READING) * photons + READING).sqrt()
        noisy = _displayed((light + spread * noise).clamp(0, 1))
        return noisy if self.quality == 100 else Jpeg(self.quality)(noisy, scene, generator)


@dataclass(frozen=True)
class Rain(Step):
    """Rain (Eq. C):  x = y + r,  r a layer of streaks, drawn or (`real`) taken from a folder of layers."""

    kind = "rain"
    task = Task.DERAIN
    streaks: float  # 10 .. 150 trained, 0 .. 200 accepted
    angle_deg: float = 0.0  # from the vertical, -45 .. 45
    length_px: float = 30.0
    width_px: int = 3
    real: bool = False

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        if not self.real:
            layer = fields.rain_field(
                *scene.size, self.streaks, self.angle_deg, self.length_px, self.width_px, generator
            )
        elif "rain" in scene.maps:
            layer = scene.maps["rain"].draw(*scene.size, generator) * (self.streaks / 100)
        else:
            raise ValueError("this recipe uses real rain layers, but no folder of rain layers was given")
        return image + layer.to(image)  # (B, 3, H, W) + (1, H, W)


@dataclass(frozen=True)
class Snow(Step):
    """Snow (Eq. E):  x = y * (1 - m) + m,  m a mask of flakes."""

    kind = "snow"
    task = Task.DESNOW
    density: float

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        if "snow" in scene.maps:
            mask = (scene.maps["snow"].draw(*scene.size, generator) * self.density).clamp(0, 1)
        else:
            mask = fields.snow_field(*scene.size, self.density, generator)
        mask = mask.to(image)  # (1, H, W)
        return image * (1 - mask) + mask


@dataclass(frozen=True)
class Haze(Step):
    """Atmospheric scattering (Eq. D):  x = t * y + a * (1 - t),  t = exp(-beta * depth),  depth in [0, 1]."""

    kind = "haze"
    task = Task.DEHAZE
    beta: float
    airlight: float = 0.9

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        if "depth" in scene.maps:
            depth = scene.maps["depth"].draw(*scene.size, generator)[None]  # (1, 1, H, W)
        else:  # every photo of a batch as if alone
            depth = torch.stack([fields.depth_from_image(y, generator.clone_state()) for y in scene.clean])
        return self.scatter(image, depth.to(image))

    def scatter(self, image: Tensor, depth: Tensor) -> Tensor:
        """Eq. D for a known depth (B, 1, H, W)."""
        t = torch.exp(-self.beta * depth)  # (B, 1, H, W)
        return t * image + self.airlight * (1 - t)  # (B, 3, H, W)


@dataclass(frozen=True)
class Jpeg(Step):
    """JPEG compression at `quality` of libjpeg with 4:2:0 chroma, through Pillow on the CPU."""

    kind = "jpeg"
    task = Task.DEJPEG
    quality: int

    def __call__(self, image: Tensor, scene: Scene, generator: Generator) -> Tensor:
        return torch.cat([_jpeg(photo, self.quality) for photo in image]).to(image)


ALL = (Lowlight, GaussianBlur, MotionBlur, Noise, CameraNoise, Rain, Snow, Haze, Jpeg)
STEPS: dict[str, type[Step]] = {step.kind: step for step in ALL}


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
