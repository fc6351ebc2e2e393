"""The degradation lab without a browser: strengths, trials, sweeps and what is drawn of them."""

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_tiny_checkpoint
from PIL import Image

from unirestorer import UniRestorer, cli
from unirestorer.cli import STRENGTHS
from unirestorer.degradation.steps import GaussianBlur, MotionBlur
from unirestorer.demo.handlers import Handlers
from unirestorer.demo.lab import BUILT_IN, LAB_PX, SWEEP_STEPS, Lab, Score, Spoiling, agreement
from unirestorer.demo.tabs.lab import strength_slider, verdict_html
from unirestorer.demo.view import lab_figures, words
from unirestorer.imaging import load_image
from unirestorer.metrics import psnr
from unirestorer.types import Task

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def lab(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    model = UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")
    return Lab(Handlers(model, tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def mixed_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("mixed") / "tiny-mixed", mixed=True)
    model = UniRestorer.from_pretrained(folder, device="cpu")
    return Lab(Handlers(model, tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(60, 200, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC).save(path)
    return str(path)


@pytest.mark.parametrize("task", list(Task))
def test_the_slider_goes_from_none_through_training_to_beyond(lab: Lab, task: Task) -> None:
    scale = lab.scales[task]
    low, high = scale.range.trained
    worst_trained = low if task is Task.DEJPEG else high
    assert not scale.beyond(scale.none) and not scale.beyond(worst_trained) and scale.beyond(scale.end)
    slider = strength_slider(scale)
    assert {slider["minimum"], slider["maximum"]} == {scale.none, scale.end}
    assert low <= slider["value"] <= high and f"{low:g} to {high:g}" in slider["info"]
    assert lab.recipe(Spoiling(task, scale.none)).steps == ()
    assert lab.recipe(Spoiling(task, scale.end)).tasks == {task}
    assert lab.recipe(Spoiling(task, scale.end, 5)) == lab.recipe(Spoiling(task, scale.end, 5))
    for wrong in (scale.limits[1] + 1, scale.limits[0] - 1, math.nan):
        with pytest.raises(ValueError, match=task.value):
            lab.recipe(Spoiling(task, wrong))
    with pytest.raises(ValueError, match="seed"):
        lab.recipe(Spoiling(task, scale.end, -1))


def test_the_lab_of_mixed_knows_the_strengths_of_mixed(lab: Lab, mixed_lab: Lab) -> None:
    """It told the ranges of "single", called blur a motion, and let noise of 45 pass for trained."""
    noise, blur = mixed_lab.scales[Task.DENOISE], mixed_lab.scales[Task.DEBLUR]
    assert noise.range.trained == (15, 35) and "trained on 15 to 35;" in strength_slider(noise)["info"]
    assert noise.beyond(45) and not lab.scales[Task.DENOISE].beyond(45)
    assert (
        strength_slider(noise)["maximum"] == 50 and strength_slider(lab.scales[Task.DENOISE])["maximum"] == 75
    )
    assert words.strength_label(blur) == "Blur: σ in pixels" and blur.end == 4
    assert words.strength_label(lab.scales[Task.DEBLUR]) == "Blur: length in pixels"
    (step,) = mixed_lab.recipe(Spoiling(Task.DEBLUR, 2.5)).steps
    assert isinstance(step, GaussianBlur) and step.strength == 2.5
    assert isinstance(lab.recipe(Spoiling(Task.DEBLUR, 9)).steps[0], MotionBlur)
    for task, scale in mixed_lab.scales.items():
        assert mixed_lab.recipe(Spoiling(task, scale.none)).steps == ()
        for strength in (scale.none + (scale.end - scale.none) * i / 40 for i in range(1, 41)):
            assert mixed_lab.recipe(Spoiling(task, strength)).tasks == {task}
    assert Task.DEJPEG not in mixed_lab.scales, "never trained"
    with pytest.raises(ValueError, match="dejpeg"):
        mixed_lab.recipe(Spoiling(Task.DEJPEG, 20))


def test_degrading_follows_the_opened_model(lab: Lab, mixed_lab: Lab) -> None:
    """/degrade drew motion blur of a length in the middle of "single" whatever model was served."""
    (step,) = mixed_lab.handlers.make_recipe("", "deblur", None, 3).steps
    assert isinstance(step, GaussianBlur) and step.strength == 2
    (step,) = lab.handlers.make_recipe("", "deblur", None, 3).steps
    assert isinstance(step, MotionBlur) and step.strength == 14
    with pytest.raises(ValueError, match="no strength of dejpeg"):
        mixed_lab.handlers.make_recipe("", "dejpeg", None, 3)


def test_several_degradations_at_once(lab: Lab, photo: str) -> None:
    """In the order of nature or backwards; the instruction names them all; a sweep moves the first alone."""
    others = {Task.DEJPEG: 20.0, Task.LOWLIGHT: 2.0, Task.DESNOW: lab.scales[Task.DESNOW].none}
    spoiling = Spoiling(Task.DENOISE, 30, 3, others)
    steps = lab.recipe(spoiling).steps
    assert [step.task for step in steps] == [Task.LOWLIGHT, Task.DENOISE, Task.DEJPEG]
    assert lab.recipe(replace(spoiling, backwards=True)) == lab.recipe(spoiling).reversed()
    assert set(lab.named(spoiling)) == {Task.DENOISE, Task.LOWLIGHT, Task.DEJPEG}
    with pytest.raises(ValueError, match="dejpeg"):
        lab.recipe(replace(spoiling, others={Task.DEJPEG: 200.0}))
    *_, trial = lab.trials(photo, spoiling)
    assert trial.recipe == lab.recipe(spoiling)
    leaf = lab.model.tree.expert_number(trial.scores[3].expert) - lab.model.tree.offsets[-1]
    assert set(lab.model.tree.task_sets[leaf]) <= {frozenset({task}) for task in lab.named(spoiling)}
    sentence = verdict_html(trial, lab.scales)
    assert "then medium noise (strength 30), then medium compression (strength 20); seed 3" in sentence
    points = lab.sweep(photo, spoiling)
    assert points[0].degraded < 100, "what is not swept is there from the start"


def test_the_labs_severities_are_uncorrelated(lab: Lab) -> None:
    """Rain's angle and haze's airlight came from one random stream: their correlation was 1."""
    recipes = [lab.recipe(Spoiling(Task.DERAIN, 75, seed, {Task.DEHAZE: 1.0})) for seed in range(300)]
    drawn = [(rain.angle_deg, haze.airlight) for rain, haze in (recipe.steps for recipe in recipes)]
    assert abs(np.corrcoef(np.array(drawn).T)[0, 1]) < 0.2


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("flag", STRENGTHS)
def test_lab_endpoint_and_command_line_make_one_recipe(lab: Lab, flag: str, seed: int) -> None:
    """Rain 75 with seed 0 was another picture on the command line than in the lab and by `/degrade`."""
    task = STRENGTHS[flag][0]
    low, high = lab.scales[task].range.trained
    words = ["degrade", "a.png", "-o", "b.png", f"--{flag}", str((low + high) / 2), "--seed", str(seed)]
    recipe = cli.make_recipe(cli.build_parser().parse_args(words))
    assert lab.recipe(Spoiling(task, (low + high) / 2, seed)) == recipe
    make_recipe = lab.handlers.make_recipe
    assert make_recipe("", task, None, seed) == make_recipe("", task, (low + high) / 2, seed) == recipe


def test_a_trial_routes_first_and_then_scores_against_the_original(lab: Lab, photo: str) -> None:
    first, second = lab.trials(photo, Spoiling(Task.DENOISE, 30, 1))
    assert first.scores == () and first.restored == "" and Path(first.degraded).is_file()
    clean, degraded = load_image(photo), load_image(second.degraded)
    assert degraded.shape == clean.shape
    scores = {score.expert: score for score in second.scores}
    assert scores[""].psnr == pytest.approx(psnr(degraded, clean)[0])
    auto = next(score for score in second.scores if "auto" in score.notes)
    assert auto.expert == second.report["expert"]
    assert auto.psnr == pytest.approx(psnr(load_image(second.restored), clean)[0], abs=1e-3)
    path = list(second.scores[1:4])
    assert [score.expert.split("-")[0] for score in path] == ["0", "1", "2"]
    best = next(score for score in path if "best" in score.notes)
    assert best.psnr == max(score.psnr for score in path)
    assert sum("instruction" in score.notes for score in second.scores) == 1
    leaf = lab.model.tree.expert_number(path[2].expert) - lab.model.tree.offsets[-1]
    assert set(lab.model.tree.task_sets[leaf]) == {frozenset({Task.DENOISE})}, "the named task's own path"


def test_nothing_done_is_identical(lab: Lab, photo: str) -> None:
    *_, trial = lab.trials(photo, Spoiling(Task.DEHAZE, 0))
    assert trial.recipe.steps == () and trial.scores[0].psnr == 100
    assert "identical" in lab_figures.scores_html(trial.scores)
    assert "Made with nothing; seed 0." in verdict_html(trial, lab.scales)


def test_without_a_photo_the_built_in_one_is_taken_and_large_ones_shrink(lab: Lab, tmp_path: Path) -> None:
    assert BUILT_IN.is_file()
    first = next(lab.trials(None, Spoiling(Task.DERAIN, 80)))
    assert max(load_image(first.degraded).shape[2:]) <= LAB_PX
    large = tmp_path / "large.png"
    Image.new("RGB", (900, 300), (90, 120, 60)).save(large)
    shown = load_image(next(lab.trials(str(large), Spoiling(Task.DERAIN, 80))).degraded)
    assert shown.shape[2:] == (LAB_PX // 3, LAB_PX)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (10, 10)])
def test_small_photos_have_no_ssim_and_no_accident(lab: Lab, tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", size, (200, 30, 60)).save(path)
    *_, trial = lab.trials(str(path), Spoiling(Task.DENOISE, 30))
    assert all(math.isnan(score.ssim) for score in trial.scores)
    assert "nan" not in lab_figures.scores_html(trial.scores)
    assert len(lab.sweep(str(path), Spoiling(Task.DENOISE, 30))) == SWEEP_STEPS


def test_what_is_no_photo_is_one_sentence(lab: Lab, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a photo")
    with pytest.raises(ValueError, match="image"):
        next(lab.trials(str(text), Spoiling(Task.DENOISE, 30)))
    with pytest.raises(ValueError, match="image"):
        lab.sweep(str(text), Spoiling(Task.DENOISE, 30))


@pytest.mark.parametrize("task", [Task.DENOISE, Task.DEJPEG])
def test_a_sweep_goes_from_none_to_the_end_and_is_drawn(lab: Lab, photo: str, task: Task) -> None:
    shares: list[float] = []
    scale = lab.scales[task]
    points = lab.sweep(photo, Spoiling(task, scale.end), shares.append)
    assert shares == pytest.approx([(i + 1) / SWEEP_STEPS for i in range(SWEEP_STEPS)])
    assert (points[0].strength, points[-1].strength) == pytest.approx((scale.none, scale.end))
    quality = [point.degraded for point in points]
    assert quality[0] == 100 and all(a > b for a, b in zip(quality[:-3], quality[3:], strict=True))
    model = lab.model
    figure = lab_figures.sweep_figure(model.tree, scale, points)
    curves = {(trace.name, trace.yaxis): list(trace.y) for trace in figure.data}
    assert curves["TYPE", "y"] == [point.levels[1] for point in points]
    total = np.sum([curves[name, "y2"] for name in ("ALL", "TYPE", "DEGREE")], axis=0)
    np.testing.assert_allclose(total, 100, atol=1e-3)
    assert curves["uncertainty", "y3"] == [point.report["e_gran_percentile"] for point in points]
    low, high = scale.range.trained
    shaded = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert {shape.x0 for shape in shaded} == {low if task is Task.DEJPEG else high}
    changes = words.switches((p.strength, p.report["expert_name"]) for p in points)
    lines = [shape for shape in figure.layout.shapes if shape.type == "line"]
    assert sum(line.name == "here" and line.x0 == scale.end for line in lines) == 3
    assert sum(line.name != "here" for line in lines) == 3 * (len(changes) - 1)
    assert list(figure.layout.xaxis.range) == [scale.none, scale.end], "severity grows to the right"

    assert model.map is not None
    way, here = lab_figures.trajectory_figure(model.map, model.tree, scale, points).data[-2:]
    assert list(way.x) == [point.report["map"]["x"] for point in points]
    assert (here.name, here.marker.symbol, here.x[0]) == ("here", "star", way.x[-1])
    player = lab_figures.player_html(model.tree, scale, points)
    steps = json.loads(html.unescape(player.split('data-steps="')[1].split('"')[0]))
    assert [step["at"] for step in steps] == [point.strength for point in points]
    assert [step["x"] for step in steps] == list(way.x)


def test_a_sweep_in_words() -> None:
    sentence = words.swept(
        Task.DENOISE, [(0.0, "rain, light", 96.0), (25.0, "noise, medium", 50.0), (50.0, "noise", 3.0)]
    ).replace(words.NBSP, " ")
    assert sentence == (
        "Noise restored by: light rain (from 0), medium noise (from 25), noise (from 50). The estimate was "
        "shakier than 96 % of training photos at first, than 3 % at the end."
    )
    assert words.switches([(0, "a"), (1, "a"), (2, "b"), (3, "a")]) == [(0, "a"), (2, "b"), (3, "a")]
    assert "estimate" not in words.swept(Task.DENOISE, [(0.0, "noise", None)])


def test_names_from_a_checkpoint_are_no_markup() -> None:
    markup = lab_figures.scores_html((Score("1-0", EVIL, 20.0, 0.5, ("auto",)),))
    assert "<img" not in markup and re.search(r"20.00\s*dB", markup)


def test_the_agreement() -> None:
    x = torch.rand(1, 3, 12, 40)
    assert agreement(x, x) == (100, pytest.approx(1))


def test_the_lab_offers_the_tasks_that_the_model_knows(lab: Lab) -> None:
    assert tuple(lab.scales) == tuple(Task)
