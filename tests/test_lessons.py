"""The lessons say what holds, and set the page to what exists."""

import math
import re
from pathlib import Path

import pytest
import torch
from helpers import make_tiny_checkpoint

from training.build.losses import uncertainty_loss
from unirestorer import UniRestorer
from unirestorer.demo.examples import find_examples
from unirestorer.demo.lessons import LESSONS, facts, lesson_html, lessons_of, reply_html
from unirestorer.demo.scale import scales_of
from unirestorer.demo.tabs.lessons import likelihood_html, likelihood_terms, noise_html, noisy_leaf_probs
from unirestorer.demo.view import words
from unirestorer.types import Estimate


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> UniRestorer:
    return UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def estimate(model: UniRestorer) -> Estimate:
    return model.estimate(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> UniRestorer:
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("mixed") / "tiny-mixed", mixed=True)
    return UniRestorer.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("number", range(len(LESSONS)))
@pytest.mark.parametrize("opened", ["model", "mixed"])
def test_every_lesson_is_whole(number: int, opened: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(opened)
    lesson, scales = lessons_of(model)[number], scales_of(model)
    assert len(set(lesson.choices)) == len(set(lesson.replies)) == 3 and lesson.choices[lesson.answer]
    for choice in range(3):
        assert ("Right." in reply_html(lesson, choice)) == (choice == lesson.answer)
        assert lesson.replies[choice] in reply_html(lesson, choice)
    assert reply_html(lesson, None) == ""
    markup = lesson_html(lesson, number, len(LESSONS))
    assert not set("{}") & set("".join((markup, lesson.question, *lesson.choices, *lesson.replies)))
    for tag in ("p", "i", "abbr", "sub", "div"):
        assert len(re.findall(rf"<{tag}[ >]", markup)) == len(re.findall(rf"</{tag}>", markup)), tag
    scene = lesson.scene
    if scene is not None:
        assert scene.tab in {"restore", "lab", "batch", "lessons"}
        if scene.example:
            assert scene.example in {example.word for example in find_examples()}
        if scene.task is not None:
            scale = scales[scene.task]
            assert scale.limits[0] <= scene.strength(scale) <= scale.limits[1]
            assert scale.beyond(scene.strength(scale)) == scene.beyond


def test_the_lessons_tell_of_the_opened_tree(model: UniRestorer, mixed: UniRestorer) -> None:
    """Every model's page told of nineteen leaves under seven types, of which heavy rain is one."""
    (single_text,), (mixed_text,) = (
        [lesson.text for lesson in lessons_of(opened) if lesson.title == "A tree of damages"]
        for opened in (model, mixed)
    )
    assert "nineteen leaves" in single_text and "under seven types under one root" in single_text
    assert "eight leaves" in mixed_text and "under four groups under one root" in mixed_text
    for opened in (model, mixed):
        names = {words.spoken(name) for name in opened.tree.names[-1]}
        assert facts(opened)["leaf"] in names
    shown = "".join(lesson.text for lesson in lessons_of(mixed))
    assert "a scratch or JPEG artefacts" in shown and "two damages at once are half undone" not in shown


def test_there_are_eight_to_twelve_and_each_tries_something() -> None:
    assert 8 <= len(LESSONS) <= 12
    assert all(lesson.scene or lesson.numbers for lesson in LESSONS)


def test_the_likelihoods_terms_are_the_loss_of_training(model: UniRestorer, estimate: Estimate) -> None:
    u = torch.randn(estimate.e.shape[1], generator=torch.Generator().manual_seed(1))
    misfit, price = likelihood_terms(estimate, u)
    assert misfit + price == pytest.approx(float(uncertainty_loss(estimate, u[None])), rel=1e-4)
    figures = [float(x) for x in re.findall(r"<td>(-?[\d.]+)</td>", likelihood_html(model, estimate))]
    assert figures[0] + figures[1] == pytest.approx(figures[2], abs=2e-3)
    assert "Restore tab" in likelihood_html(model, None)


def test_noise_moves_the_leaves_and_none_is_serving(model: UniRestorer, estimate: Estimate) -> None:
    served = model.route(estimate).leaf_probs[0]
    plain, quiet = noisy_leaf_probs(model, estimate, 0.0, 0)
    torch.testing.assert_close(plain, served)
    torch.testing.assert_close(quiet, served)
    draws = [noisy_leaf_probs(model, estimate, 5.0, seed)[1] for seed in range(3)]
    assert all(float(draw.sum()) == pytest.approx(1) for draw in draws)
    assert not torch.allclose(draws[0], draws[1]) and not torch.allclose(draws[0], served)
    assert "with noise" in noise_html(model, estimate, 3.0, 0) and "Restore tab" in noise_html(
        model, None, 3, 0
    )


def test_what_the_lesson_on_load_claims() -> None:
    loads = torch.tensor([1.0, 0.0, 0.0])
    assert float(loads.std(unbiased=False) / loads.mean()) == pytest.approx(math.sqrt(2))
