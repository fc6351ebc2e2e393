"""Recipes: which degradations, how strong, from which seed.

Drawn first, applied later, plain data in between.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from unirestorer.degradation.steps import (
    STEPS,
    CameraNoise,
    GaussianBlur,
    Haze,
    Jpeg,
    Lowlight,
    MapFolder,
    MotionBlur,
    Noise,
    Rain,
    Scene,
    Snow,
    Step,
)
from unirestorer.types import Task

Band = Literal["in", "out"]
Setting = Literal["single", "mixed"]

# Strength ranges (trained, held out) of each task: paper, supplement B for "mixed", supplement C for
# "single".
RANGES: dict[str, dict[Task, dict[str, tuple[float, float]]]] = {
    "single": {
        Task.DERAIN: {"in": (10, 150), "out": (150, 200)},
        Task.DEHAZE: {"in": (0.3, 1.5), "out": (1.5, 2.5)},
        Task.DENOISE: {"in": (2, 50), "out": (50, 75)},
        Task.DEBLUR: {"in": (5, 23), "out": (23, 31)},
        Task.LOWLIGHT: {"in": (1.2, 2.5), "out": (2.5, 3.5)},
        Task.DESNOW: {"in": (0.05, 1.0), "out": (1.0, 1.5)},
        Task.DEJPEG: {"in": (8, 50), "out": (3, 8)},
    },
    "mixed": {
        Task.LOWLIGHT: {"in": (1.0, 2.0), "out": (2.0, 2.5)},
        Task.DEBLUR: {"in": (1.0, 3.0), "out": (3.0, 4.0)},
        Task.DENOISE: {"in": (15, 35), "out": (35, 50)},
        Task.DERAIN: {"in": (50, 100), "out": (100, 150)},
        Task.DESNOW: {"in": (0.05, 1.0), "out": (1.0, 1.5)},
        Task.DEHAZE: {"in": (0.5, 1.5), "out": (1.5, 2.0)},
    },
}
# The order of Fig. A; JPEG, only in "single", comes last.
ORDER = (Task.LOWLIGHT, Task.DEBLUR, Task.DENOISE, Task.DERAIN, Task.DESNOW, Task.DEHAZE, Task.DEJPEG)
GATE = 0.5
REAL_RAIN_SHARE = 0.25
CAMERA_SHARE = 0.3  # of the noise in "single" that is trained on

# Upper ends of all degrees but the last, and each degree in words, mild to severe (supplement C).
DEGREES: dict[Task, tuple[tuple[float, ...], tuple[str, ...]]] = {
    Task.DERAIN: ((50, 100), ("light rain", "medium rain", "heavy rain")),
    Task.DEHAZE: ((1.0,), ("light haze", "thick haze")),
    Task.DENOISE: ((15, 35), ("light noise", "medium noise", "heavy noise")),
    Task.DEBLUR: ((15,), ("mild motion blur", "strong motion blur")),
    Task.LOWLIGHT: ((1.7,), ("dim light", "very low light")),
    Task.DESNOW: ((0.34, 0.67), ("light snow", "medium snow", "heavy snow")),
    Task.DEJPEG: ((15, 35), ("heavy compression", "medium compression", "light compression")),  # by quality
}
REAL_RAIN = "real rain"
GAUSSIAN_BLUR_LIMIT, GAUSSIAN_BLUR_WORDS = 2.0, ("mild blur", "strong blur")
CLEAN_CAPTION = "a clean photo"


@dataclass(frozen=True)
class Recipe:
    """Degradations in order of application and the seed of their random fields. No steps = a clean photo."""

    steps: tuple[Step, ...]
    seed: int = 0

    def apply(self, clean: Tensor, maps: Mapping[str, MapFolder] | None = None) -> Tensor:
        """Degrade `clean` (B, 3, H, W) in [0, 1]; the result has its shape and range. Same recipe, same bits.

        `maps` may hold folders named rain, snow, depth or light. Raises ValueError for another shape.
        """
        if clean.ndim != 4 or clean.shape[1] != 3:
            raise ValueError(f"a batch of RGB images (B, 3, H, W) is needed, got shape {tuple(clean.shape)}")
        scene = Scene(clean, dict(maps or {}))
        image = clean
        for index, step in enumerate(self.steps):
            image = step(image, scene, child_generator(self.seed, index)).clamp(0, 1)
        return image

    @property
    def tasks(self) -> frozenset[Task]:
        """The tasks that undo this recipe."""
        return frozenset(step.task for step in self.steps)

    @property
    def words(self) -> str:
        """The recipe in words, type and degree: "heavy rain", "dim light and light noise", "clean"."""
        return " and ".join(degree_words(step) for step in self.steps) or "clean"

    @property
    def caption(self) -> str:
        """The text that the extractor is contrasted against."""
        return f"a photo with {self.words}" if self.steps else CLEAN_CAPTION

    def reseeded(self, seed: int) -> Recipe:
        """The same degradations with other random fields."""
        return dataclasses.replace(self, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        kinds = {kind: name for name, kind in STEPS.items()}
        steps = [{"kind": kinds[type(step)], **dataclasses.asdict(step)} for step in self.steps]
        return {"seed": self.seed, "steps": steps}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Raises ValueError, in one sentence, for anything that `to_json` cannot have written."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the recipe is not JSON: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:  # noqa: ANN401 - anything a JSON file may hold
        """Raises ValueError, in one sentence, for anything that `to_dict` cannot have made."""
        shaped = isinstance(data, Mapping) and not set(data) - {"seed", "steps"}
        if not (shaped and isinstance(data.get("steps"), list)):
            raise ValueError('a recipe is {"seed": 0, "steps": [{"kind": "noise", "sigma_8bit": 25}]}')
        seed = data.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ValueError(f"a recipe's seed is a whole number from 0 to 2^63 - 1, got {seed!r}")
        if len(data["steps"]) > 16:
            raise ValueError(f"a recipe has at most 16 steps, got {len(data['steps'])}")
        return cls(tuple(_step_from_dict(step) for step in data["steps"]), seed)


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


def _step_from_dict(data: Any) -> Step:  # noqa: ANN401
    name = data.get("kind") if isinstance(data, Mapping) else None
    kind = STEPS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"every step of a recipe needs a kind, one of {', '.join(STEPS)}; got {data!r:.80}")
    known = {f.name: f for f in dataclasses.fields(kind)}
    values = {key: value for key, value in data.items() if key != "kind"}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{data['kind']}: unknown parameter {key!r}; known are {', '.join(known)}")
        if known[key].type == "bool":
            if not isinstance(value, bool):
                raise ValueError(f"{data['kind']}.{key}: expected true or false, got {value!r:.40}")
            continue
        low, high = LIMITS[key]
        whole = known[key].type == "int"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ValueError(f"{data['kind']}.{key}: expected a {'whole ' * whole}number, got {value!r:.40}")
        if not (low <= value <= high and math.isfinite(value)):
            raise ValueError(f"{data['kind']}.{key}: expected {low:g} to {high:g}, got {value!r:.40}")
    if values.get("size_px", 1) % 2 == 0:
        raise ValueError(f"{data['kind']}.size_px: expected an odd number, got {values['size_px']}")
    try:
        return kind(**values)
    except TypeError:
        required = [name for name, f in known.items() if f.default is dataclasses.MISSING]
        raise ValueError(f"{data['kind']}: needs {', '.join(required)}") from None


def child_generator(seed: int, *path: int) -> Generator:
    """An independent CPU generator for a place under a seed, so that no two steps share a random stream."""
    state = np.random.SeedSequence((seed, *path)).generate_state(2, np.uint32)
    return Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


def degree(step: Step) -> int:
    """Index of the step's degree within its task, in the order of `DEGREES`."""
    if isinstance(step, Rain) and step.real:
        return len(DEGREES[Task.DERAIN][1])
    if isinstance(step, GaussianBlur):
        return int(step.strength >= GAUSSIAN_BLUR_LIMIT)
    limits = DEGREES[step.task][0]
    if step.task in (Task.DERAIN, Task.DENOISE, Task.DEJPEG):
        return sum(step.strength > limit for limit in limits)
    return sum(step.strength >= limit for limit in limits)


def degree_words(step: Step) -> str:
    """The step in words: "heavy rain"."""
    if isinstance(step, Rain) and step.real:
        return REAL_RAIN
    if isinstance(step, GaussianBlur):
        return GAUSSIAN_BLUR_WORDS[degree(step)]
    return DEGREES[step.task][1][degree(step)]


@functools.cache
def caption_tasks(caption: str) -> frozenset[Task]:
    """The tasks that undo what a caption names; none for the clean one and for an unknown text."""
    words = {word: task for task, (_, degrees) in DEGREES.items() for word in degrees}
    words |= {REAL_RAIN: Task.DERAIN, **dict.fromkeys(GAUSSIAN_BLUR_WORDS, Task.DEBLUR)}
    named = caption.removeprefix("a photo with ").split(" and ")
    return frozenset(words[word] for word in named if word in words)


def make_step(task: Task, strength: float, generator: Generator, *, setting: Setting = "single") -> Step:
    """The task's degradation at a given strength (unit of `RANGES`), every other parameter drawn."""
    unit = torch.rand(5, generator=generator).tolist()
    match task:
        case Task.LOWLIGHT:
            return Lowlight(gamma=strength)
        case Task.DEBLUR if setting == "mixed":
            other = (
                strength if unit[0] < 0.5 else 0.5 + unit[1] * (strength - 0.5)
            )  # half isotropic, half not
            return GaussianBlur(7 + 2 * int(unit[2] * 9), strength, other, unit[3] * 180 - 90)
        case Task.DEBLUR:
            return MotionBlur(length_px=strength)
        case Task.DENOISE:
            return Noise(sigma_8bit=strength)
        case Task.DERAIN:
            return Rain(strength, unit[0] * 90 - 45, 20 + unit[1] * 20, (3, 5, 7, 9, 11)[int(unit[2] * 5)])
        case Task.DESNOW:
            return Snow(density=strength)
        case Task.DEHAZE:
            return Haze(beta=strength, airlight=0.8 + unit[0] * 0.2)
        case Task.DEJPEG:
            return Jpeg(quality=round(strength))


def draw_step(
    task: Task,
    generator: Generator,
    *,
    setting: Setting = "single",
    band: Band = "in",
    real_rain: bool = False,
) -> Step:
    """The task's degradation with every parameter drawn, its strength uniform in the band of `RANGES`.

    With `real_rain` a quarter of the rain comes from real layers, at 60 to 120 % of their brightness. Of the
    noise that is trained on in "single" a part is a camera's, mostly weak.
    """
    low, high = RANGES[setting][task][band]
    unit, dice = torch.rand(2, generator=generator).tolist()
    if task is Task.DENOISE and (setting, band) == ("single", "in") and dice < CAMERA_SHARE:
        quality = 100 if dice < CAMERA_SHARE / 2 else 85 + round(26 * (dice / CAMERA_SHARE - 0.5))
        return CameraNoise(low + unit**2 * (high - low), quality)
    if task is Task.DERAIN and real_rain and dice < REAL_RAIN_SHARE:
        return Rain(streaks=60 + 60 * unit, real=True)
    return make_step(task, low + unit * (high - low), generator, setting=setting)


def draw_recipe(
    seed: int,
    *,
    setting: Setting = "single",
    task: Task | None = None,
    band: Band = "in",
    real_rain: bool = False,
) -> Recipe:
    """A random recipe: one degradation (`setting="single"`; of `task`, or of any) or a gated chain
    (`"mixed"`).

    Every step is drawn from its own generator under (seed, step), so severities of a chain are uncorrelated.
    """
    tasks: tuple[Task, ...]
    if setting == "single":
        pick = int(torch.randint(len(Task), (1,), generator=child_generator(seed, 100)))
        tasks = (task or list(Task)[pick],)
    else:
        gates = child_generator(seed, 100)
        tasks = ()
        while not tasks:
            open_gates = torch.rand(len(ORDER), generator=gates) < GATE
            tasks = tuple(
                t for t, gate in zip(ORDER, open_gates, strict=True) if gate and t in RANGES["mixed"]
            )
    steps = tuple(
        draw_step(
            t, child_generator(seed, 101 + ORDER.index(t)), setting=setting, band=band, real_rain=real_rain
        )
        for t in tasks
    )
    return Recipe(steps, seed)
