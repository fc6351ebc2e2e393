"""Draws the page's example photos into assets/examples: `python -m assets.make_examples`.

Pictures that scikit-image and scikit-learn ship inside their packages: seven with one degradation each under
a fixed seed, an undegraded one, and four with several degradations. Credits: assets/README.md.
"""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from unirestorer.degradation import Recipe
from unirestorer.degradation.steps import Haze, Jpeg, Lowlight, MotionBlur, Noise, Rain, Snow, Step
from unirestorer.imaging import from_uint8, save_image
from unirestorer.types import Task

SIZE = (480, 360)
FOLDER = Path(__file__).parent / "examples"
BUNDLED = (("skimage", "data"), ("sklearn", "datasets/images"))  # package, folder of pictures inside it

# Name -> picture, and how it is degraded.
EXAMPLES: dict[str, tuple[str, *tuple[Step, ...]]] = {
    Task.DERAIN: ("rocket.jpg", Rain(streaks=120, angle_deg=-18, length_px=32, width_px=3)),
    Task.DEHAZE: ("china.jpg", Haze(beta=1.4, airlight=0.92)),
    Task.DENOISE: ("coffee.png", Noise(sigma_8bit=40)),
    Task.DEBLUR: ("astronaut.png", MotionBlur(length_px=19)),
    Task.LOWLIGHT: ("flower.jpg", Lowlight(gamma=2.2)),
    Task.DESNOW: ("chelsea.png", Snow(density=0.6)),
    Task.DEJPEG: ("china.jpg", Jpeg(quality=10)),
    "clean": ("coffee.png",),
    "rain-haze": ("chelsea.png", Rain(streaks=80, angle_deg=12), Haze(beta=0.9, airlight=0.9)),
    "haze-noise": ("astronaut.png", Noise(sigma_8bit=25), Haze(beta=1.0, airlight=0.9)),
    "dark-rain": ("coffee.png", Lowlight(gamma=1.6), Noise(sigma_8bit=20), Rain(streaks=70, angle_deg=-9)),
    "dark-snow": ("rocket.jpg", Lowlight(gamma=1.5), Noise(sigma_8bit=20), Snow(density=0.5)),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for seed, (name, (picture, *steps)) in enumerate(EXAMPLES.items()):
        clean = from_uint8(np.asarray(cropped(read(picture))))
        recipe = Recipe(tuple(steps), seed)
        save_image(recipe.apply(clean), FOLDER / f"{name}.png")
        print(
            f"{name}.png: {picture}, {recipe.words}, {(FOLDER / f'{name}.png').stat().st_size / 1024:.0f} KB"
        )


def read(picture: str) -> Image.Image:
    """A bundled picture; nothing is downloaded."""
    for package, folder in BUNDLED:
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and (path := Path(spec.origin).parent / folder / picture).is_file():
            return Image.open(path).convert("RGB")
    raise FileNotFoundError(f"{picture} is in neither scikit-image nor scikit-learn")


def cropped(image: Image.Image) -> Image.Image:
    """The largest middle part of the shape of `SIZE`, reduced to it; what is smaller keeps its pixels."""
    scale = min(image.width / SIZE[0], image.height / SIZE[1])
    width, height = round(SIZE[0] * scale), round(SIZE[1] * scale)
    left, top = (image.width - width) // 2, (image.height - height) // 3
    image = image.crop((left, top, left + width, top + height))
    return image if scale <= 1 else image.resize(SIZE, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
