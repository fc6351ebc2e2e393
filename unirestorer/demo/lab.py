"""The degradation lab: a clean photo degraded at will, what the router makes of it and, the original being
known, how well each expert of the path restores it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unirestorer.degradation import Recipe, compose
from unirestorer.demo.examples import FOLDER
from unirestorer.demo.handlers import Handlers
from unirestorer.demo.photos import centre, read_photo, shrink
from unirestorer.demo.scale import scales_of
from unirestorer.demo.view import words
from unirestorer.imaging import as_file, load_image, to_pil
from unirestorer.metrics import SSIM_WINDOW_PX, psnr, ssim
from unirestorer.report import describe
from unirestorer.types import Route, Task

LAB_PX = 480  # longest side of the photo that is degraded: everything answers while a slider moves
SWEEP_STEPS = 13
SWEEP_PX = 240  # side of the middle part that a sweep restores under every expert
BUILT_IN = FOLDER / "clean.png"


@dataclass(frozen=True)
class Spoiling:
    """What the visitor does to the photo: one degradation, which a sweep moves, and others at will.

    Strengths are those of the opened model's scales; a scale's `none` leaves its degradation out.
    """

    task: Task
    strength: float
    seed: int = 0
    others: Mapping[Task, float] = field(default_factory=dict)
    backwards: bool = False  # the last of Fig. A first


@dataclass(frozen=True)
class Score:
    """How well one picture agrees with the original. `expert` is "" for the degraded photo itself."""

    expert: str
    name: str
    psnr: float  # dB, RGB
    ssim: float
    notes: tuple[str, ...] = ()  # of "auto", "instruction", "best" (of the path)


@dataclass(frozen=True)
class Trial:
    """One degraded photo: files to show, auto mode's report and, once restored, the scores."""

    recipe: Recipe
    report: dict[str, Any]
    degraded: str
    restored: str = ""
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Point:
    """One strength of a sweep: auto mode's report, and the PSNR (dB) of input, auto, each level's expert."""

    strength: float
    report: dict[str, Any]
    degraded: float
    auto: float
    levels: tuple[float, ...]


class Lab:
    """The model behind the lab. Files for the browser go where the page's other files go."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.model = handlers, handlers.model
        self.scales = scales_of(handlers.model)

    def recipe(self, spoiling: Spoiling) -> Recipe:
        """In the order of the paper's Fig. A, or backwards. Raises ValueError outside a task's scale."""
        strengths = {**spoiling.others, spoiling.task: spoiling.strength}
        for task, strength in strengths.items():
            if task not in self.scales:
                raise ValueError(f"this model knows no {task.value}: choose among {', '.join(self.scales)}")
            low, high = self.scales[task].limits
            if not low <= strength <= high:
                raise ValueError(f"strength of {task.value}: expected {low:g} to {high:g}, got {strength}")
        present = {task: value for task, value in strengths.items() if value != self.scales[task].none}
        recipe = compose(present, spoiling.seed, self.model.mode)
        return recipe.reversed() if spoiling.backwards else recipe

    def named(self, spoiling: Spoiling) -> tuple[Task, ...]:
        """The tasks that an instruction names: those of the recipe, or the one that is not there yet."""
        tasks = self.recipe(spoiling).tasks or {spoiling.task}
        return tuple(task for task in Task if task in tasks)

    def trials(self, photo: str | None, spoiling: Spoiling) -> Iterator[Trial]:
        """First the route, which answers while a slider moves, then the restored photo and the scores.

        Raises ValueError for what is no photo and for a strength or seed that cannot be.
        """
        recipe = self.recipe(spoiling)
        clean = lab_photo(photo)
        degraded = as_file(recipe.apply(clean))
        decision = self.model.inspect(degraded)
        named = self.model.route(decision.estimate, self.named(spoiling))
        trial = Trial(
            recipe, describe(self.model, decision), self.handlers.write(to_pil(degraded), "degraded")
        )
        yield trial
        outputs = self._outputs(degraded, decision.route, named)
        auto = int(decision.route.expert)
        yield replace(
            trial,
            restored=self.handlers.write(to_pil(outputs[auto]), "restored"),
            scores=self._scores(clean, degraded, outputs, auto, named),
        )

    def sweep(
        self, photo: str | None, spoiling: Spoiling, progress: Callable[[float], None] | None = None
    ) -> list[Point]:
        """The same photo from none of the task's degradation to far beyond training, in `SWEEP_STEPS` even
        steps; the others stay as they are.

        The route sees the whole photo; the experts restore its middle part of at most `SWEEP_PX` a side.
        """
        clean = lab_photo(photo)
        scale = self.scales[spoiling.task]
        points = []
        for step in range(SWEEP_STEPS):
            strength = scale.none + (scale.end - scale.none) * step / (SWEEP_STEPS - 1)
            now = replace(spoiling, strength=strength)
            degraded = as_file(self.recipe(now).apply(clean))
            decision = self.model.inspect(degraded)
            named = self.model.route(decision.estimate, self.named(now))
            part, original = centre(degraded, SWEEP_PX), centre(clean, SWEEP_PX)
            outputs = self._outputs(part, decision.route, named)
            quality = {expert: psnr(output, original)[0] for expert, output in outputs.items()}
            levels = tuple(quality[expert] for expert in self._path(named))
            auto = quality[int(decision.route.expert)]
            report = describe(self.model, decision)
            points.append(Point(strength, report, psnr(part, original)[0], auto, levels))
            if progress:
                progress((step + 1) / SWEEP_STEPS)
        return points

    def _path(self, route: Route) -> list[int]:
        return self.model.tree.expert_table[int(route.leaf)].tolist()

    def _outputs(self, degraded: Tensor, auto: Route, named: Route) -> dict[int, Tensor]:
        """The photo restored by each expert on the instruction's path and by auto mode's choice."""
        experts = {*self._path(named), int(auto.expert)}
        return {expert: self.model.experts(degraded, torch.tensor([expert])) for expert in sorted(experts)}

    def _scores(
        self, clean: Tensor, degraded: Tensor, outputs: dict[int, Tensor], auto: int, named: Route
    ) -> tuple[Score, ...]:
        tree, path = self.model.tree, self._path(named)
        measured = {expert: agreement(output, clean) for expert, output in outputs.items()}
        best = max(path, key=lambda expert: measured[expert][0])
        notes = {"auto": auto, "instruction": int(named.expert), "best": best}
        rows = [Score("", "as degraded", *agreement(degraded, clean))]
        for expert in [*path, *(expert for expert in outputs if expert not in path)]:
            own = tuple(note for note, holder in notes.items() if holder == expert)
            name, label = tree.expert_names[expert], words.expert_label(tree, expert)
            rows.append(Score(name, label, *measured[expert], own))
        return tuple(rows)


def lab_photo(photo: str | None) -> Tensor:
    """A photo's file, or the built-in picture, as (1, 3, H, W) of at most `LAB_PX` a side.

    Raises ValueError for what is no photo.
    """
    image = read_photo(photo) if photo else load_image(BUILT_IN)
    return load_image(shrink(to_pil(image), LAB_PX))


def agreement(x: Tensor, y: Tensor) -> tuple[float, float]:
    """PSNR in dB and SSIM; nan for the latter where a side is too short for its window."""
    return psnr(x, y)[0], ssim(x, y)[0] if min(x.shape[2:]) >= SSIM_WINDOW_PX else math.nan
