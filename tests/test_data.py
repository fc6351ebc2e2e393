"""Training data: photos are found by name, a corpus is rendered as planned, and rendering resumes."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from training.build import data
from training.build.data import (
    Corpus,
    Photos,
    at_least,
    draw_fade,
    draw_plan,
    fade,
    find_photos,
    ordered_map,
    render_row,
)
from training.build.draw import draw_photo
from training.config import CorpusConfig
from unirestorer.degradation import Recipe
from unirestorer.imaging import from_uint8, load_image, to_uint8
from unirestorer.types import Task

PX = 24
CONFIG = CorpusConfig(window_px=PX, recipes=2, photos_per_recipe=4, clean=9)
ROWS = 7 * 2 * 4 + 2 * data.PAIR_WINDOWS + 9  # drawn recipes, two real pairs, clean photos: two blocks of 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos, a rain and a low-light pair (degraded: half as bright), and two rain layers."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(6):
        (root / "clean").mkdir(exist_ok=True)
        draw_photo(index, (52, 40)).save(root / "clean" / f"{index}.png")
    for number, (name, suffix) in enumerate({"rain100l": ".png", "lowlight_pairs": ".webp"}.items()):
        for side in ("clean", "degraded"):
            (root / name / side).mkdir(parents=True)
        clean = draw_photo(20 + number, (50, 44))
        clean.save(root / name / "clean" / f"{number}.png")
        clean.point(lambda v: v // 2).save(root / name / "degraded" / f"{number}{suffix}", lossless=True)
    (root / "rain_streaks").mkdir()
    for name in ("1-0", "2-0"):
        draw_photo(30, (60, 60)).convert("L").save(root / "rain_streaks" / f"{name}.png")
    return root


@pytest.fixture(autouse=True)
def all_photos_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn photos are in no committed list: let all be the experts'."""
    monkeypatch.setattr(data, "part_of", lambda name: "experts")
    monkeypatch.setattr(data, "layer_part_of", lambda name: "trained" if name[0] == "1" else "held_back")


@pytest.fixture(scope="module")
def photos(root: Path) -> Photos:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "part_of", lambda name: "experts")
        patch.setattr(data, "layer_part_of", lambda name: "trained" if name[0] == "1" else "held_back")
        return find_photos(root, "experts")


def build(folder: Path, photos: Photos, config: CorpusConfig = CONFIG, seed: int = 3) -> Corpus:
    return Corpus.build(folder, photos, config, "single", seed, workers=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, photos: Photos) -> Corpus:
    return build(tmp_path_factory.mktemp("corpus"), photos)


# Finding photos


def test_photos_pairs_and_layers_are_found(photos: Photos, root: Path) -> None:
    assert photos.clean == (
        *(f"clean/{i}.png" for i in range(6)),
        "lowlight_pairs/clean/1.png",
        "rain100l/clean/0.png",
    )
    assert photos.pairs == (
        ("lowlight_pairs/clean/1.png", "lowlight_pairs/degraded/1.webp", Task.LOWLIGHT),
        ("rain100l/clean/0.png", "rain100l/degraded/0.png", Task.DERAIN),
    )
    assert photos.rain == (root / "rain_streaks" / "1-0.png",)  # the other is held back
    assert set(photos.maps) == {"rain"}


def test_photos_of_other_parts_are_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "part_of", lambda name: "routers" if name[-5] in "01" else "experts")
    assert find_photos(root, "experts").clean == tuple(f"clean/{i}.png" for i in (2, 3, 4, 5))
    assert [task for *_, task in find_photos(root, "routers").pairs] == [Task.LOWLIGHT, Task.DERAIN]
    with pytest.raises(ValueError, match=r"no clean photo for stop found in .*photos"):
        find_photos(root, "stop")


def test_a_clean_photo_without_its_partner_is_just_clean(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(root, tmp_path / "photos"))
    (folder / "rain100l/degraded/0.png").unlink()
    found = find_photos(folder, "experts")
    assert "rain100l/clean/0.png" in found.clean
    assert [task for *_, task in found.pairs] == [Task.LOWLIGHT]
    shutil.rmtree(folder / "rain_streaks")
    assert find_photos(folder, "experts").maps == {}


@pytest.mark.parametrize("content", ["nothing", "text", "only degraded"])
def test_a_folder_without_clean_photos_is_an_error(tmp_path: Path, content: str) -> None:
    if content == "text":
        (tmp_path / "readme.txt").write_text("no photo")
    if content == "only degraded":
        (tmp_path / "degraded").mkdir()
        draw_photo(0, (32, 32)).save(tmp_path / "degraded" / "0.png")
    with pytest.raises(ValueError, match=r"no image|no clean photo") as caught:
        find_photos(tmp_path, "experts")
    assert tmp_path.name in str(caught.value)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        find_photos(tmp_path / "nowhere", "experts")


# The plan


def test_the_plan_has_every_recipe_pair_and_clean_photo(photos: Photos) -> None:
    entries, rows = draw_plan(photos, CONFIG, "single", seed=3)
    assert len(rows) == ROWS
    tasks = [entry.tasks for entry in entries if entry.recipe]
    assert tasks == [(task,) for task in Task for _ in range(2)]
    for number, entry in enumerate(entries):
        mine = [row for row in rows if row.recipe == number]
        if entry.recipe:
            assert len({row.photo for row in mine}) == len(mine) == 4  # each of another photo
            assert entry.caption == Recipe.from_dict(entry.recipe).caption
        else:
            assert len(mine) == data.PAIR_WINDOWS
            assert len({row.source for row in mine}) == 1
            assert "degraded" in mine[0].source
    assert [e.caption for e in entries[-2:]] == ["a photo with real low light", "a photo with real rain"]
    assert len({row.seed for row in rows}) == ROWS
    assert sum(row.recipe < 0 for row in rows) == 9
    assert draw_plan(photos, CONFIG, "single", seed=3) == (entries, rows)
    assert draw_plan(photos, CONFIG, "single", seed=4) != (entries, rows)


def test_a_mixed_plan_has_chains_and_no_pairs(photos: Photos) -> None:
    entries, rows = draw_plan(photos, CONFIG, "mixed", seed=3)
    assert len(entries) == 14
    assert len(rows) == 14 * 4 + 9
    assert any(len(entry.tasks) > 2 for entry in entries)
    assert all(Task.DEJPEG not in entry.tasks and entry.recipe for entry in entries)


def test_the_held_out_band_is_drawn_without_real_data(photos: Photos) -> None:
    entries, _ = draw_plan(photos, replace(CONFIG, band="out"), "single", seed=3)
    assert len(entries) == 14
    noise = next(entry for entry in entries if entry.tasks == (Task.DENOISE,))
    assert noise.recipe["steps"][0]["sigma_8bit"] > 50


# Rendering


def test_every_window_is_its_rows(corpus: Corpus, photos: Photos) -> None:
    assert len(corpus) == ROWS
    assert corpus.lq.shape == corpus.hq.shape == (ROWS, PX, PX, 3)
    assert corpus.lq.dtype == corpus.hq.dtype == np.uint8
    for index, row in enumerate(corpus.rows):
        recipe = corpus.entries[row.recipe].recipe if row.recipe >= 0 else None
        lq, hq = render_row(photos, row, recipe, PX)
        assert np.array_equal(corpus.lq[index], lq)
        assert np.array_equal(corpus.hq[index], hq)


def test_windows_are_cut_out_of_the_degraded_photo_and_the_clean_one_alike(
    corpus: Corpus, photos: Photos
) -> None:
    """Every photo under a recipe has random fields of its own: the row's seed, not the recipe's."""
    noisy = [i for i, row in enumerate(corpus.rows) if corpus.task[i] == list(Task).index(Task.DENOISE)]
    for index in (*noisy[:3], 0, ROWS - 1):
        row = corpus.rows[index]
        clean = degraded = load_image(photos.folder / row.photo)
        if row.recipe >= 0:
            recipe = Recipe.from_dict(corpus.entries[row.recipe].recipe)
            degraded = replace(recipe, seed=row.seed).apply(clean, photos.maps)
        lq, hq = (sliding_window_view(to_uint8(image), (PX, PX, 3)) for image in (degraded, clean))
        both = (lq == corpus.lq[index]).all((-1, -2, -3)) & (hq == corpus.hq[index]).all((-1, -2, -3))
        assert both.sum() == 1


def test_degraded_and_clean_windows_lie_alike(corpus: Corpus) -> None:
    """Undegraded windows are equal; the pairs' degraded photos are half as bright."""
    clean = corpus.recipe < 0
    assert np.array_equal(corpus.lq[clean], corpus.hq[clean])
    changed = (corpus.lq[~clean] != corpus.hq[~clean]).any((1, 2, 3))
    assert changed.mean() > 0.9  # light rain may miss a small window
    for index, row in enumerate(corpus.rows):
        if row.source:
            assert np.array_equal(corpus.lq[index], corpus.hq[index] // 2)


def test_the_whole_photo_is_degraded_before_the_window_is_cut(photos: Photos) -> None:
    """The JPEG grid's phase varies: blocks of 8 px begin anywhere in a window."""
    phases = set()
    flat = Recipe.from_dict({"steps": [{"kind": "jpeg", "quality": 3}]}).to_dict()
    for seed in range(12):
        lq, _ = render_row(photos, data.Row(0, "clean/0.png", seed), flat, PX)
        steps = np.abs(np.diff(lq.astype(int), axis=1)).sum((0, 2))
        phases.add(int(np.bincount(np.arange(len(steps)) % 8, steps, 8).argmax()))
    assert len(phases) > 3


def test_columns_agree_with_the_rows(corpus: Corpus) -> None:
    assert len(corpus.captions) == len(corpus.task) == len(corpus.recipe) == ROWS
    for index, row in enumerate(corpus.rows):
        if row.recipe < 0:
            assert (corpus.captions[index], corpus.task[index]) == ("a clean photo", -1)
        else:
            assert corpus.captions[index] == corpus.entries[row.recipe].caption
            assert list(Task)[corpus.task[index]] == corpus.entries[row.recipe].tasks[0]


def test_photos_smaller_than_a_window_are_mirrored(tmp_path: Path) -> None:
    draw_photo(0, (17, 31)).save(tmp_path / "small.png")
    lq, hq = render_row(Photos(tmp_path, ("small.png",), ()), data.Row(-1, "small.png", 5), None, 40)
    assert lq.shape == hq.shape == (40, 40, 3)
    photo = load_image(tmp_path / "small.png")
    large = at_least(photo, 40)
    assert large.shape == (1, 3, 62, 68)
    assert torch.equal(large[..., :31, :17], photo)
    assert torch.equal(large[..., 31:, :17], photo.flip(2))
    assert torch.equal(large[..., :31, 17:34], photo.flip(3))
    assert at_least(photo, 10) is photo


# Resuming


def test_an_interrupted_rendering_goes_on_at_the_next_block(
    corpus: Corpus, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, blocks = data._render_block, []

    def render(job: tuple) -> tuple:
        blocks.append(len(job[2]))
        if len(blocks) == 2:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(data, "_render_block", render)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, photos)
    assert (tmp_path / "done.txt").read_text() == "1"
    again = build(tmp_path, photos)
    assert blocks == [64, ROWS - 64, ROWS - 64]  # the first block is not made again
    assert np.array_equal(again.lq, corpus.lq)
    assert np.array_equal(again.hq, corpus.hq)
    build(tmp_path, photos)
    assert len(blocks) == 3  # nothing left to do


def test_without_its_progress_a_corpus_is_rendered_again(
    corpus: Corpus, photos: Photos, tmp_path: Path
) -> None:
    """A kill may leave windows that are half written: what done.txt does not count is overwritten."""
    made = build(tmp_path, photos)
    made.lq[5:70] = 7
    made.lq.flush()
    (tmp_path / "done.txt").unlink()
    again = build(tmp_path, photos)
    assert np.array_equal(again.lq, corpus.lq)
    assert (tmp_path / "done.txt").read_text() == "2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["done.txt", "hq.npy", "lq.npy", "plan.json"]


def test_processes_render_the_same(photos: Photos, corpus: Corpus, tmp_path: Path) -> None:
    made = Corpus.build(tmp_path, photos, CONFIG, "single", 3, workers=2)
    assert np.array_equal(made.lq, corpus.lq)


def test_ordered_map_keeps_the_order() -> None:
    jobs = [float(i * i) for i in range(20)]
    expected = [float(i) for i in range(20)]
    assert list(ordered_map(math.sqrt, jobs, 1)) == expected
    assert list(ordered_map(math.sqrt, jobs, 2)) == expected


@pytest.mark.parametrize("change", ["seed", "photos", "window", "recipes"])
def test_a_corpus_of_another_plan_is_not_overwritten(
    corpus: Corpus, photos: Photos, tmp_path: Path, change: str
) -> None:
    folder = Path(shutil.copytree(corpus.folder, tmp_path / "corpus"))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    fewer = replace(photos, clean=photos.clean[1:])
    with pytest.raises(ValueError, match=r"corpus holds a corpus of other photos or settings"):
        build(
            folder,
            fewer if change == "photos" else photos,
            replace(CONFIG, **{"window": {"window_px": 16}, "recipes": {"recipes": 3}}.get(change, {})),
            seed=4 if change == "seed" else 3,
        )
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_the_plan_is_plain_data(corpus: Corpus) -> None:
    plan = json.loads((corpus.folder / "plan.json").read_text())
    assert plan["px"] == PX
    assert len(plan["rows"]) == ROWS
    assert plan["entries"][0]["recipe"] == corpus.entries[0].recipe


def test_a_lost_array_is_noticed(corpus: Corpus, photos: Photos, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(corpus.folder, tmp_path / "corpus"))
    (folder / "lq.npy").unlink()
    assert np.array_equal(build(folder, photos).lq, corpus.lq)


# Batches


@pytest.mark.parametrize("px", [1, 16, PX])
def test_batches_hold_matching_windows(corpus: Corpus, px: int) -> None:
    rows = np.random.default_rng(0).integers(ROWS, size=40)
    lq, hq = corpus.batch(rows, px, np.random.default_rng(1))
    assert lq.shape == hq.shape == (40, 3, px, px)
    assert lq.dtype == hq.dtype == torch.float32
    assert 0 <= lq.min() <= lq.max() <= 1
    assert lq.is_contiguous(memory_format=torch.channels_last)
    pairs = 0
    for i, row in enumerate(rows):
        if corpus.rows[row].recipe < 0:
            assert torch.equal(lq[i], hq[i])
        elif corpus.rows[row].source:
            pairs += 1
            assert torch.equal((hq[i] * 255).round() // 2, (lq[i] * 255).round())
    assert pairs > 3


def test_photos_fade_to_one_channel_or_towards_it() -> None:
    x = torch.rand(400, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def faded_by(share: float) -> torch.Tensor:
        return fade(x, torch.from_numpy(draw_fade((400,), share, np.random.default_rng(0))))

    assert torch.equal(faded_by(0.0), x)
    faded = faded_by(0.5)
    changed = (faded != x).flatten(1).any(1)
    grey = (faded == faded[:, :1]).flatten(1).all(1)
    assert 0.4 < changed.float().mean() < 0.6
    assert 0.15 < grey.float().mean() < 0.35, "half of them in black and white"
    one = (faded[:, :1, None] == x[:, None]).flatten(3).all(3)[:, 0].any(1)
    assert one[grey].all(), "the grey is a channel of the photo, not a mean"
    kept = (faded == x).flatten(2).all(2).any(1)
    assert kept.all(), "the channel that the others fade to stays"


def test_a_batch_is_a_function_of_its_generator(corpus: Corpus) -> None:
    rows = np.arange(8)
    first, second = (corpus.batch(rows, 16, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], corpus.batch(rows, 16, np.random.default_rng(6))[0])


def test_windows_are_turned_and_mirrored_in_all_eight_ways(corpus: Corpus) -> None:
    """At full size every batch entry is one of the window's eight copies, and each of them turns up."""
    window = from_uint8(corpus.hq[0].copy())[0]
    copies = [t for k in range(4) for t in (window.rot90(k, (1, 2)), window.rot90(k, (1, 2)).flip(2))]
    _, hq = corpus.batch(np.zeros(100, int), PX, np.random.default_rng(0))
    seen = [[torch.equal(one, copy) for copy in copies].index(True) for one in hq]
    assert set(seen) == set(range(8))
