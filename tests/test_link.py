"""An address sets the page; rubbish in it is passed over."""

from pathlib import Path

import pytest
from helpers import make_tiny_checkpoint

from unirestorer import UniRestorer
from unirestorer.demo.link import TABS, Link, read_link
from unirestorer.types import Task


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> UniRestorer:
    return UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")


def test_what_is_named_is_set(model: UniRestorer) -> None:
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
    assert read_link(query, model, 8) == Link(
        "lab", 3, (Task.DERAIN, Task.DEHAZE), "1-2", Task.DEJPEG, 4.5, 7, {Task.DENOISE: 12.0}, True, 4
    )
    assert read_link({}, model, 8) == Link()
    assert read_link({"tab": "lessons", "hide": "lessons"}, model, 8).tab == "restore"
    assert {read_link({"tab": tab}, model, 8).tab for tab in TABS} == set(TABS)


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
def test_rubbish_is_passed_over(model: UniRestorer, query: dict[str, str]) -> None:
    assert read_link(query, model, 8) == Link()


def test_what_the_lab_starts_with_needs_no_name(model: UniRestorer) -> None:
    assert read_link({"strength": "200"}, model, 8) == Link(task=Task.DERAIN, strength=200)
    link = read_link({"dehaze": "1"}, model, 8)
    assert link == Link(task=Task.DERAIN, others={Task.DEHAZE: 1.0})


@pytest.mark.parametrize("strength", ["nan", "inf", "-1", "76", "x", ""])
def test_a_strength_outside_the_slider_is_passed_over(model: UniRestorer, strength: str) -> None:
    assert read_link({"task": "denoise", "strength": strength}, model, 8) == Link(task=Task.DENOISE)


def test_strengths_are_those_of_the_opened_model(tmp_path: Path) -> None:
    """A page of mixed took what "single" takes: noise of 60, blur of 25."""
    mixed = UniRestorer.from_pretrained(make_tiny_checkpoint(tmp_path / "mixed", mixed=True), device="cpu")
    assert read_link({"task": "denoise", "strength": "60"}, mixed, 8) == Link(task=Task.DENOISE)
    assert read_link({"task": "deblur", "strength": "25"}, mixed, 8) == Link(task=Task.DEBLUR)
    assert read_link({"task": "deblur", "strength": "2.5"}, mixed, 8) == Link(task=Task.DEBLUR, strength=2.5)
    assert read_link({"dejpeg": "20", "tasks": "dejpeg"}, mixed, 8) == Link()
