"""The nouns of the method, shared by every module. No logic lives here but what reads a task's name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Never

if TYPE_CHECKING:  # `--help` should not have to wait for torch
    from torch import Tensor


class Task(StrEnum):
    """The seven restoration tasks, in the order that every table and figure uses."""

    DERAIN = "derain"
    DEHAZE = "dehaze"
    DENOISE = "denoise"
    DEBLUR = "deblur"
    LOWLIGHT = "lowlight"
    DESNOW = "desnow"
    DEJPEG = "dejpeg"

    @classmethod
    def _missing_(cls, value: object) -> Never:
        raise ValueError(f"unknown task {str(value)[:40]!r}: choose among {', '.join(cls)}")


Mode = Literal["single", "mixed"]  # one degradation a photo, or several
Tasks = (
    str | Iterable[str] | None
)  # an instruction: one task or several, each a `Task` or its text; None: any
Seconds = dict[str, float]  # of stages, by their names
TASK_NOUNS: dict[Task, str] = {  # what each task undoes; the names of a tree's nodes begin so
    Task.DERAIN: "rain",
    Task.DEHAZE: "haze",
    Task.DENOISE: "noise",
    Task.DEBLUR: "blur",
    Task.LOWLIGHT: "low light",
    Task.DESNOW: "snow",
    Task.DEJPEG: "JPEG",
}


def named_tasks(tasks: Tasks) -> frozenset[Task] | None:
    """The tasks that an instruction names: one or several, each a `Task` or its text; None stays None.

    Raises ValueError for an unknown one.
    """
    if tasks is None:
        return None
    return frozenset(map(Task, [tasks] if isinstance(tasks, str) else tasks))


@dataclass(frozen=True)
class Estimate:
    """What is known of a batch's degradation (Eq. 3 and 7).

    `e` is the degradation representation (DR), of unit length; `e_deg` estimates the centre of the DR's leaf
    and `log_e_gran` is the log-variance of that estimate, both in the standardised space of the training DRs.
    """

    e: Tensor  # (B, D)
    e_deg: Tensor  # (B, D)
    log_e_gran: Tensor  # (B, D)


@dataclass(frozen=True)
class Route:
    """Where a batch goes (Eq. 6). Probabilities sum to 1 per row; pruned leaves have exactly 0."""

    leaf_probs: Tensor  # (B, leaves)
    level_probs: Tensor  # (B, levels)
    leaf: Tensor  # (B,) index of the likeliest leaf
    level: Tensor  # (B,) index of the chosen level, 0 = ALL
    expert: Tensor  # (B,) index into the tree's list of experts
    forced: bool = False  # `expert` was named, whatever leaf and level say


@dataclass(frozen=True)
class Decision:
    """What is to be done with a batch, and why.

    `seconds` maps each stage's name to its duration and is the one record of it: restoring by this decision
    adds its own stages.
    """

    estimate: Estimate
    route: Route
    seconds: Seconds


@dataclass(frozen=True)
class Restoration:
    """A restored batch and the decision that it follows."""

    image: Tensor  # (B, 3, H, W) in [0, 1]
    decision: Decision
