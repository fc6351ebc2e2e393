"""The page's state in its address, so that a teacher can hand out a prepared page. No photo travels in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unirestorer.demo.lessons import LESSONS
from unirestorer.demo.scale import Scale, scales_of
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Task

TABS = ("restore", "lab", "compare", "batch", "lessons", "card")


@dataclass(frozen=True)
class Link:
    """What an address asks for; what it does not name or names wrongly stays as the page starts."""

    tab: str = "restore"
    example: int | None = None
    tasks: tuple[Task, ...] = ()
    expert: str = ""
    task: Task | None = None  # the lab's
    strength: float | None = None
    seed: int = 0
    others: Mapping[Task, float] = field(default_factory=dict)  # more degradations in the lab
    backwards: bool = False
    lesson: int = 1


def read_link(query: Mapping[str, str], model: UniRestorer, examples: int) -> Link:
    """The state that a query such as `tab=lab&task=denoise&strength=60` asks for. Rubbish is passed over.

    A tab of `hide`, which page.js hides, is not opened.
    """
    scales = scales_of(model)
    tab = query.get("tab", "")
    expert = query.get("expert", "")
    named = set(query.get("tasks", "").split("."))
    task = next((task for task in scales if task.value == query.get("task")), None)
    first = task or next(iter(scales))  # what the lab starts with is not named in an address
    more = {other: _strength(query.get(other.value), scales[other]) for other in scales if other is not first}
    others = {other: value for other, value in more.items() if value not in (None, scales[other].none)}
    strength = _strength(query.get("strength"), scales[first])
    hidden = query.get("hide", "").split(".")
    return Link(
        tab=tab if tab in TABS and tab not in hidden else "restore",
        example=_whole(query.get("example"), examples - 1),
        tasks=tuple(task for task in scales if task.value in named),
        expert=expert if expert in model.tree.expert_names else "",
        task=task if strength is None and not others else first,
        strength=strength,
        seed=_whole(query.get("seed"), 2**31 - 1) or 0,
        others=others,
        backwards=query.get("backwards") == "1",
        lesson=_whole(query.get("lesson"), len(LESSONS)) or 1,
    )


def page_paths(names: Sequence[str]) -> list[str]:
    """Where each model's page is, from the root: the first at "", the others under their names."""
    paths: list[str] = []
    for number, name in enumerate(names):
        path = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") if number else ""
        paths.append(f"model-{number}" if path in paths or (number and not path) else path)
    return paths


def _whole(text: str | None, most: int) -> int | None:
    if text is None or not (text.isascii() and text.isdecimal()) or len(text) > 10:
        return None
    return int(text) if int(text) <= most else None


def _strength(text: str | None, scale: Scale) -> float | None:
    try:
        value = float((text or "")[:20])
    except ValueError:
        return None
    low, high = scale.limits
    return value if math.isfinite(value) and low <= value <= high else None
