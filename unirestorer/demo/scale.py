"""The strengths of one degradation as the opened model knows them: what the lab's sliders and words say."""

from __future__ import annotations

from dataclasses import dataclass

from unirestorer.config import Range
from unirestorer.degradation import strength_name
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Mode, Task

# The strength at which a degradation is hardly there, in the unit of its range.
NONE: dict[Task, float] = {
    Task.DERAIN: 0,
    Task.DEHAZE: 0,
    Task.DENOISE: 0,
    Task.DEBLUR: 1,
    Task.LOWLIGHT: 1,
    Task.DESNOW: 0,
    Task.DEJPEG: 95,
}
NO_GAUSSIAN_PX = 0.1


@dataclass(frozen=True)
class Scale:
    """From hardly there to the far end of what training never saw; the worse, the farther.

    The unit is that of the model's mode: blur is a motion in "single" and a Gaussian in "mixed".
    """

    task: Task
    mode: Mode
    range: Range

    @property
    def unit(self) -> str:
        """What a strength counts, in words."""
        return strength_name(self.task, self.mode)

    @property
    def none(self) -> float:
        """The strength that leaves the degradation out."""
        gaussian = self.task is Task.DEBLUR and self.mode == "mixed"
        return NO_GAUSSIAN_PX if gaussian else NONE[self.task]

    @property
    def falls(self) -> bool:
        """Whether less is worse, as with quality."""
        return self.none > self.range.trained[1]

    @property
    def end(self) -> float:
        """The far end of the held-out band."""
        return self.range.beyond[0 if self.falls else 1]

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest strength."""
        return min(self.none, self.end), max(self.none, self.end)

    @property
    def edge(self) -> float:
        """The worst strength that was trained."""
        return self.range.trained[0 if self.falls else 1]

    @property
    def step(self) -> float:
        """What a slider moves by."""
        return 1 if self.limits[1] > 5 else 0.05

    def beyond(self, strength: float) -> bool:
        """Whether training never saw a strength, because it is too bad."""
        return strength < self.edge if self.falls else strength > self.edge

    def trained(self, share: float) -> float:
        """The strength at a share (0 to 1) of the trained range, rounded as people would say it."""
        return self._between(self.range.trained, share)

    def held_out(self, share: float) -> float:
        """The same of the band beyond."""
        return self._between(self.range.beyond, share)

    def _between(self, ends: tuple[float, float], share: float) -> float:
        strength = ends[0] + share * (ends[1] - ends[0])
        return round(strength) if self.step == 1 else round(strength, 2)


def scales_of(model: UniRestorer) -> dict[Task, Scale]:
    """The scale of every degradation that a model knows, in the order of `Task`."""
    return {task: Scale(task, model.mode, range_) for task, range_ in model.ranges.items()}
