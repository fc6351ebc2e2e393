"""The page's state in its address, so that a teacher can hand out a prepared page. No photo travels in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unirestorer.demo.lab import NONE, known_tasks, span
from unirestorer.demo.lessons import LESSONS
from unirestorer.tree import DegradationTree
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
    hide: frozenset[str] = frozenset()  # of TABS but the first, and "sidebar"; page.js hides them


def read_link(query: Mapping[str, str], tree: DegradationTree, examples: int) -> Link:
    """The state that a query such as `tab=lab&task=denoise&strength=60` asks for. Rubbish is passed over."""
    known = known_tasks(tree)
    tab = query.get("tab", "")
    expert = query.get("expert", "")
    named = set(query.get("tasks", "").split("."))
    task = next((task for task in known if task.value == query.get("task")), None)
    first = task or known[0]  # what the lab starts with is not named in an address
    example = _whole(query.get("example"), examples - 1)
    more = {one: _strength(query.get(one.value), one) for one in known if one is not first}
    others = {one: value for one, value in more.items() if value not in (None, NONE[one])}
    strength = _strength(query.get("strength"), first)
    hidden = set(query.get("hide", "").split(".")) & {*TABS[1:], "sidebar"}
    return Link(
        tab=tab if tab in TABS and tab not in hidden else "restore",
        example=example,
        tasks=tuple(task for task in known if task.value in named),
        expert=expert if expert in tree.expert_names else "",
        task=task if strength is None and not others else first,
        strength=strength,
        seed=_whole(query.get("seed"), 2**31 - 1) or 0,
        others=others,
        backwards=query.get("backwards") == "1",
        lesson=_whole(query.get("lesson"), len(LESSONS)) or 1,
        hide=frozenset(hidden),
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


def _strength(text: str | None, task: Task) -> float | None:
    if text is None:
        return None
    try:
        value = float(text[:20])
    except ValueError:
        return None
    return value if math.isfinite(value) and min(span(task)) <= value <= max(span(task)) else None
