"""Recipes: which degradations, how strong, from which seed.

Drawn first, applied later, plain data in between. Only this module knows the random streams: `compose` and
`draw_recipe` draw a step's parameters, `Recipe.apply` its random field, each from a stream of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from unirestorer.types import Mode, Task

Band = Literal["in", "out"]

# Strength ranges (trained, held out) of each task: paper, supplement B for "mixed", supplement C for
# "single".
RANGES: dict[Mode, dict[Task, dict[Band, tuple[float, float]]]] = {
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
MOST_STEPS = 16
# Random streams under a recipe's seed: below `MOST_STEPS` the fields of its steps, then the gates of a chain,
# then the parameters of the first task of `ORDER` and, one by one, of the others.
GATES, FIRST = 100, 101
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
GAUSSIAN_DEGREES = ((2.0,), ("mild blur", "strong blur"))
REAL_RAIN = "real rain"
CLEAN_CAPTION = "a clean photo"

STRENGTH_NAMES: dict[Task, str] = {
    Task.DERAIN: "number of streaks",
    Task.DEHAZE: "thickness β",
    Task.DENOISE: "σ of 255",
    Task.DEBLUR: "length in pixels",
    Task.LOWLIGHT: "darkening γ",
    Task.DESNOW: "density",
    Task.DEJPEG: "quality, less is worse",
}


def strength_name(task: Task, mode: Mode = "single") -> str:
    """What a strength counts, in words: blur is a motion in "single" and a Gaussian in "mixed"."""
    return "σ in pixels" if (task, mode) == (Task.DEBLUR, "mixed") else STRENGTH_NAMES[task]


@dataclass(frozen=True)
class Recipe:
    """Degradations in order of application and the seed of their random fields. No steps = a clean photo.

    `streams` numbers the steps' random streams under the seed, by default in the order of `steps`. Raises
    ValueError for a seed, a number of steps or streams that cannot be.
    """

    steps: tuple[Step, ...]
    seed: int = 0
    streams: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        count = len(self.steps)
        if count > MOST_STEPS:
            raise ValueError(f"a recipe has at most {MOST_STEPS} steps, got {count}")
        streams = self.streams or tuple(range(count))
        if len(streams) != count or not all(type(n) is int and 0 <= n < MOST_STEPS for n in streams):
            raise ValueError(f"a recipe's streams are a small whole number per step, got {streams!r:.80}")
        object.__setattr__(self, "streams", streams)

    def apply(self, clean: Tensor, maps: Mapping[str, MapFolder] | None = None) -> Tensor:
        """Degrade `clean` (B, 3, H, W) in [0, 1]; the result has its shape and range. Same recipe, same bits.

        `maps` may hold folders named rain, snow, depth or light. Raises ValueError for another shape.
        """
        if clean.ndim != 4 or clean.shape[1] != 3:
            raise ValueError(f"a batch of RGB images (B, 3, H, W) is needed, got shape {tuple(clean.shape)}")
        scene = Scene(clean, dict(maps or {}))
        image = clean
        for step, stream in zip(self.steps, self.streams, strict=True):
            image = step(image, scene, child_generator(self.seed, stream)).clamp(0, 1)
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
        return replace(self, seed=seed)

    def without(self, task: Task) -> Recipe:
        """The recipe without the task's steps; every other step keeps its random field, pixel for pixel."""
        kept = [i for i, step in enumerate(self.steps) if step.task != task]
        return Recipe(tuple(self.steps[i] for i in kept), self.seed, tuple(self.streams[i] for i in kept))

    def reversed(self) -> Recipe:
        """The last step first, each with its own random field."""
        return Recipe(self.steps[::-1], self.seed, self.streams[::-1])

    def to_dict(self) -> dict[str, Any]:
        steps = [{"kind": step.kind, **dataclasses.asdict(step)} for step in self.steps]
        in_order = self.streams == tuple(range(len(self.steps)))
        return {"seed": self.seed, "steps": steps} | ({} if in_order else {"streams": list(self.streams)})

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
        shaped = isinstance(data, Mapping) and not set(data) - {"seed", "steps", "streams"}
        lists = shaped and [data.get("steps"), data.get("streams", [])]
        if not lists or not all(isinstance(part, list) for part in lists):
            raise ValueError('a recipe is {"seed": 0, "steps": [{"kind": "noise", "sigma_8bit": 25}]}')
        steps, streams = lists
        return cls(tuple(map(_step_from_dict, steps)), data.get("seed", 0), tuple(streams))


def _step_from_dict(data: Any) -> Step:  # noqa: ANN401
    name = data.get("kind") if isinstance(data, Mapping) else None
    kind = STEPS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"every step of a recipe needs a kind, one of {', '.join(STEPS)}; got {data!r:.80}")
    values = {key: value for key, value in data.items() if key != "kind"}
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(kind)}
    needed = [parameter for parameter, missing in fields.items() if missing]
    if not set(needed) <= set(values) <= set(fields):
        raise ValueError(
            f"{name}: takes {', '.join(fields)} and needs {', '.join(needed)}, got {list(values)!r:.80}"
        )
    return kind(**values)


def _check_seed(seed: int) -> None:
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"a recipe's seed is a whole number from 0 to 2^63 - 1, got {seed!r}")


def child_generator(seed: int, *path: int) -> Generator:
    """An independent CPU generator for a place under a seed, so that no two steps share a random stream.

    Raises ValueError for a seed that cannot be.
    """
    _check_seed(seed)
    state = np.random.SeedSequence((seed, *path)).generate_state(2, np.uint32)
    return Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


def degree_words(step: Step) -> str:
    """The step in words, type and degree: "heavy rain"."""
    if isinstance(step, Rain) and step.real:
        return REAL_RAIN
    limits, words = GAUSSIAN_DEGREES if isinstance(step, GaussianBlur) else DEGREES[step.task]
    closed = step.task in (Task.DERAIN, Task.DENOISE, Task.DEJPEG)  # their limits end the milder degree
    return words[(bisect_left if closed else bisect_right)(limits, step.strength)]


def degree_strengths(task: Task) -> dict[str, float]:
    """The middle of each degree's range in "single" by its word; "light" and "heavy" work for all tasks."""
    limits, names = DEGREES[task]
    low, high = RANGES["single"][task]["in"]
    edges = (low, *limits, high)
    words = [name.split() for name in names]
    while len({word[-1] for word in words}) == 1:  # what all degrees share names the task: "mild motion blur"
        words = [word[:-1] for word in words]
    middles = {"-".join(word): (edges[i] + edges[i + 1]) / 2 for i, word in enumerate(words)}
    mildest, *_, worst = middles.values()
    return middles | {"light": mildest, "heavy": worst} | middles


@functools.cache
def caption_tasks(caption: str) -> frozenset[Task]:
    """The tasks that undo what a caption names; none for the clean one and for an unknown text."""
    words = {word: task for task, (_, degrees) in DEGREES.items() for word in degrees}
    words |= {REAL_RAIN: Task.DERAIN, **dict.fromkeys(GAUSSIAN_DEGREES[1], Task.DEBLUR)}
    named = caption.removeprefix("a photo with ").split(" and ")
    return frozenset(words[word] for word in named if word in words)


def make_step(task: Task, strength: float, generator: Generator, *, mode: Mode = "single") -> Step:
    """The task's degradation at a given strength (unit of `RANGES`), every other parameter drawn.

    Raises ValueError beyond `LIMITS`.
    """
    if not math.isfinite(strength):
        raise ValueError(f"the strength of {task} is a number, got {strength}")
    unit = torch.rand(5, generator=generator).tolist()
    match task:
        case Task.LOWLIGHT:
            return Lowlight(gamma=strength)
        case Task.DEBLUR if mode == "mixed":  # half isotropic, half not
            other = strength if unit[0] < 0.5 else 0.5 + unit[1] * (strength - 0.5)
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
    task: Task, generator: Generator, *, mode: Mode = "single", band: Band = "in", real_rain: bool = False
) -> Step:
    """The task's degradation with every parameter drawn, its strength uniform in the band of `RANGES`.

    With `real_rain` a quarter of the rain comes from real layers, at 60 to 120 % of their brightness. Of the
    noise that is trained on in "single" a part is a camera's, mostly weak.
    """
    low, high = RANGES[mode][task][band]
    unit, dice = torch.rand(2, generator=generator).tolist()
    if task is Task.DENOISE and (mode, band) == ("single", "in") and dice < CAMERA_SHARE:
        quality = 100 if dice < CAMERA_SHARE / 2 else 85 + round(26 * (dice / CAMERA_SHARE - 0.5))
        return CameraNoise(low + unit**2 * (high - low), quality)
    if task is Task.DERAIN and real_rain and dice < REAL_RAIN_SHARE:
        return Rain(streaks=60 + 60 * unit, real=True)
    return make_step(task, low + unit * (high - low), generator, mode=mode)


def compose(
    strengths: Mapping[Task, float | Band],
    seed: int,
    mode: Mode = "single",
    *,
    real_rain: bool = False,
    stream: tuple[int, ...] = (FIRST,),
) -> Recipe:
    """The recipe of some tasks' strengths (unit of `RANGES`) in the order of Fig. A, the rest drawn.

    A band in place of a strength draws that too, as `draw_step` does. Every step is drawn from a stream of
    its own, so that severities are uncorrelated; `stream` is the path of the first one under the seed. Raises
    ValueError for an unknown task, a seed that cannot be, and a strength beyond `LIMITS`.
    """
    steps = []
    for task in sorted(map(Task, strengths), key=ORDER.index):
        strength = strengths[task]
        generator = child_generator(seed, *stream[:-1], stream[-1] + ORDER.index(task))
        if isinstance(strength, str):
            steps.append(draw_step(task, generator, mode=mode, band=strength, real_rain=real_rain))
        else:
            steps.append(make_step(task, float(strength), generator, mode=mode))
    return Recipe(tuple(steps), seed)


def draw_recipe(
    seed: int, *, mode: Mode = "single", task: Task | None = None, band: Band = "in", real_rain: bool = False
) -> Recipe:
    """A random recipe: one degradation (mode "single"; of `task`, or of any) or a gated chain ("mixed")."""
    random = child_generator(seed, GATES)
    if mode == "single":
        tasks = [task or list(Task)[int(torch.randint(len(Task), (1,), generator=random))]]
    else:
        tasks = []
        while not tasks:
            gates = torch.rand(len(ORDER), generator=random) < GATE
            tasks = [t for t, gate in zip(ORDER, gates, strict=True) if gate and t in RANGES[mode]]
    return compose(dict.fromkeys(tasks, band), seed, mode, real_rain=real_rain)
