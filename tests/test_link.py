"""An address sets the page; rubbish in it is passed over."""

import pytest
from helpers import make_tiny_tree

from unirestorer.demo.link import TABS, Link, read_link
from unirestorer.types import Task

TREE = make_tiny_tree()


def test_what_is_named_is_set() -> None:
    query = {
        "tab": "lab",
        "example": "3",
        "tasks": "dehaze.derain",
        "expert": "1-2",
        "task": "dejpeg",
        "strength": "4.5",
        "seed": "7",
        "hide": "batch.sidebar.restore.nonsense",
        "denoise": "12",
        "derain": "0",
        "backwards": "1",
        "lesson": "4",
    }
    assert read_link(query, TREE, 8) == Link(
        "lab",
        3,
        (Task.DERAIN, Task.DEHAZE),
        "1-2",
        Task.DEJPEG,
        4.5,
        7,
        {Task.DENOISE: 12.0},
        True,
        4,
        frozenset({"batch", "sidebar"}),
    )
    assert read_link({}, TREE, 8) == Link()
    assert read_link({"tab": "lessons", "hide": "lessons"}, TREE, 8).tab == "restore"
    assert {read_link({"tab": tab}, TREE, 8).tab for tab in TABS} == set(TABS)


@pytest.mark.parametrize(
    "query",
    [
        {"tab": "<script>", "example": "8", "tasks": "sunshine", "expert": "9-9", "task": "DERAIN"},
        {"example": "-1", "strength": "x20", "seed": "1e3"},
        {"example": "٣", "seed": "9" * 5000, "tasks": "." * 5000, "hide": "." * 5000},
        {"seed": str(2**31), "example": "1.5", "tab": "", "expert": ""},
        {"lesson": "0", "backwards": "yes", "denoise": "76", "dehaze": "nan", "dejpeg": "95"},
        {"lesson": "99"},
    ],
)
def test_rubbish_is_passed_over(query: dict[str, str]) -> None:
    assert read_link(query, TREE, 8) == Link()


def test_what_the_lab_starts_with_needs_no_name() -> None:
    assert read_link({"strength": "200"}, TREE, 8) == Link(task=Task.DERAIN, strength=200)
    found = read_link({"dehaze": "1"}, TREE, 8)
    assert found == Link(task=Task.DERAIN, others={Task.DEHAZE: 1.0})


@pytest.mark.parametrize("strength", ["nan", "inf", "-1", "76", "x", ""])
def test_a_strength_outside_the_slider_is_passed_over(strength: str) -> None:
    assert read_link({"task": "denoise", "strength": strength}, TREE, 8) == Link(task=Task.DENOISE)
