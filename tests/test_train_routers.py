"""Would a router that learns nothing be noticed? Toys whose right answer is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.build.data import find_photos
from training.build.draw import draw_photo, draw_photos
from training.build.losses import L1_FLOOR, expected_l1, load_loss, uncertainty_loss
from training.build.routers import (
    Embedded,
    draw_rows,
    embed,
    new_router,
    plan_key,
    random_window,
    routing_report,
    train_routers,
)
from training.config import RoutersConfig, preset
from unirestorer.config import RouterShape
from unirestorer.extractor import Extractor
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree
from unirestorer.types import Estimate, Route, Task

CONFIG = RoutersConfig(RouterShape(hidden=32, layers=3), dropout=0.0, steps=250, batch=64, lr=3e-3)
CENTERS = torch.eye(8)[:4] * 3  # four leaves, far from each other
TREE = DegradationTree(
    (CENTERS.mean(0, keepdim=True), torch.stack((CENTERS[:2].mean(0), CENTERS[2:].mean(0))), CENTERS),
    (torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([0, 0, 1, 1])),
    tuple({frozenset({task}): 9} for task in list(Task)[:4]),
    (("everything",), ("a", "b"), ("a, 1", "a, 2", "b, 1", "b, 2")),
)


def toy(label_noise: float, seed: int = 0) -> Embedded:
    """DRs around four centres; around the last two, a share is labelled with the other one's leaf."""
    random = torch.Generator().manual_seed(seed)
    place = torch.randint(4, (1200,), generator=random)
    e = CENTERS[place] + 0.1 * torch.randn(1200, 8, generator=random)
    wrong = (torch.rand(1200, generator=random) < label_noise) & (place >= 2)
    leaf = torch.where(wrong, 5 - place, place)
    held_out = torch.rand(1200, generator=random) < 0.2
    return Embedded(e, leaf, held_out, torch.ones(1200, dtype=torch.bool), np.empty(0), np.empty(0))


def trained(data: Embedded, l1: torch.Tensor, config: RoutersConfig = CONFIG) -> Router:
    router = new_router(TREE, data.e, config, seed=0)
    with torch.enable_grad():
        train_routers(router, TREE, data, np.arange(len(data.e)), l1, config, seed=0)
    return router


def own_path_is_best(data: Embedded, by_level: tuple[float, float, float]) -> torch.Tensor:
    """l1 (N, experts): the experts of the own path as given per level, all others bad."""
    l1 = torch.full((len(data.e), len(TREE.expert_names)), 0.4)
    return l1.scatter(1, TREE.expert_table[data.leaf], torch.tensor([by_level]).expand(len(data.e), -1))


def test_training_alone_leaves_features_out() -> None:
    """Dropout is a setting of the training: the router that it starts from has none, whoever opened it."""
    data = toy(0.0)
    settings = replace(CONFIG, dropout=0.5, steps=2)
    fresh = new_router(TREE, data.e, settings, seed=0)
    learning = trained(data, own_path_is_best(data, (0.1, 0.1, 0.1)), settings)
    for router, same in ((fresh, True), (learning, False)):
        router.train()
        assert torch.equal(router.estimate(CENTERS).e_deg, router.estimate(CENTERS).e_deg) == same


@torch.no_grad()
def test_e_gran_rises_with_label_noise() -> None:
    means = []
    for noise in (0.0, 0.15, 0.5):
        data = toy(noise)
        router = trained(data, own_path_is_best(data, (0.1, 0.1, 0.1)))
        log_e_gran = router.estimate(CENTERS).log_e_gran.mean(1)
        means.append(float(log_e_gran[2:].mean()))
        if noise:
            assert log_e_gran[2:].min() > log_e_gran[:2].max() + 0.3
    assert means[0] + 0.3 < means[1] < means[2] - 0.1


@pytest.mark.parametrize("best", [0, 1, 2])
@torch.no_grad()
def test_a_clearly_better_level_wins_in_spite_of_the_load_term(best: int) -> None:
    data = toy(0.0)
    by_level = [0.2, 0.2, 0.2]
    by_level[best] = 0.1
    router = trained(data, own_path_is_best(data, (by_level[0], by_level[1], by_level[2])))
    route = router.route(router.estimate(data.e))
    assert (route.level == best).float().mean() > 0.98
    if best:
        assert torch.equal(TREE.expert_table[route.leaf, best], TREE.expert_table[data.leaf, best])


@torch.no_grad()
def test_what_a_leaf_gains_over_its_parent_is_told() -> None:
    data = toy(0.0)
    l1 = own_path_is_best(data, (0.3, 0.2, 0.1))
    report = routing_report(trained(data, l1), TREE, data, np.arange(len(data.e)), l1)
    assert report["leaf_over_parent_db"] == pytest.approx(6.02, abs=0.01)  # half the error
    assert report["leaf_accuracy"] > 0.95


def test_too_strong_a_load_term_makes_the_levels_alike() -> None:
    """Why beta is swept: balance bought at any price ignores the l1."""
    data = toy(0.0)
    l1 = own_path_is_best(data, (0.2, 0.2, 0.1))
    router = trained(data, l1, replace(CONFIG, beta=100.0))
    probs = router.route(router.estimate(data.e)).level_probs.mean(0)
    assert probs.max() < 0.5


def test_losses_by_hand() -> None:
    probs = torch.tensor([[0.75, 0.25]])
    index = torch.zeros(1, dtype=torch.long)
    route = Route(probs, torch.tensor([[0.5, 0.5]]), index, index, index)
    table = torch.tensor([[0, 1], [0, 2]])
    l1 = torch.tensor([[0.2, 0.1, 0.4]])
    assert expected_l1(route, l1, table).item() == pytest.approx(0.5 * 2 + 0.75 * 0.5 * 1 + 0.25 * 0.5 * 4)
    tiny = torch.tensor([[L1_FLOOR / 2, L1_FLOOR / 4, L1_FLOOR]])
    assert expected_l1(route, tiny, table).item() == pytest.approx(0.5 * 0.5 + 0.375 * 0.25 + 0.125 * 1)
    loads = replace(route, level_probs=torch.tensor([[0.8, 0.2], [0.4, 0.6]]))
    assert load_loss(loads).item() == pytest.approx(0.1 / 0.5)
    estimate = Estimate(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), torch.log(torch.tensor([[2.0, 0.5]])))
    by_hand = (4 / (2 * 2.0) + np.log(2.0) / 2 + 1 / (2 * 0.5) + np.log(0.5) / 2) / 2
    assert uncertainty_loss(estimate, torch.tensor([[3.0, 2.0]])).item() == pytest.approx(by_hand)


SEVEN = DegradationTree(  # a leaf per task
    (torch.zeros(1, 512), torch.zeros(7, 512), torch.eye(7, 512)),
    (torch.tensor([0]), torch.zeros(7, dtype=torch.long), torch.arange(7)),
    tuple({frozenset({task}): 9} for task in Task),
    (("everything",), tuple("abcdefg"), tuple("abcdefg")),
)
SMALL = RoutersConfig(recipes=2, photos_per_recipe=2, trained_photos_per_recipe=1, crop_px=48, grey_share=0.0)


def test_rows_of_held_out_photos_are_whole_and_clean_ones_go_round(tmp_path: Path) -> None:
    folder = draw_photos(tmp_path / "photos", seed=0)
    photos, trained = find_photos(folder, "routers"), find_photos(folder, "experts")
    plan, held = draw_rows(photos, trained, SMALL, "single", seed=0)
    assert all(row.whole == (row.photo in held) for row in plan)
    assert 0 < len(held & set(photos.clean)) < len(photos.clean)
    degraded = [row for row in plan if row.number >= 0]
    assert sum(row.photo in trained.clean for row in degraded) == SMALL.recipes * 7
    clean = [row.photo for row in plan if row.number < 0]
    assert len(set(clean)) == min(len(clean), len(photos.clean) + len(trained.clean))
    assert draw_rows(photos, trained, SMALL, "single", seed=0) == (plan, held)


def test_another_plan_is_never_taken_from_kept_blocks(tmp_path: Path) -> None:
    """Blocks are kept for a resumed run; a run with other settings must not find them."""
    folder = draw_photos(tmp_path / "photos", seed=0)
    photos, trained = find_photos(folder, "routers"), find_photos(folder, "experts")
    extractor = Extractor(preset("tiny").extractor.shape, ("a clean photo",)).eval()

    def made(config: RoutersConfig) -> Embedded:
        return embed(
            extractor, SEVEN, photos, trained, config, "single", 0, tmp_path / "work", torch.device("cpu")
        )

    first = made(SMALL)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    again = made(SMALL)
    assert torch.equal(first.e, again.e) and np.array_equal(first.lq, again.lq) and first.key == again.key
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    other = made(replace(SMALL, recipes=1))
    assert other.key != first.key and len(other.leaf) < len(first.leaf)
    unseen = torch.tensor(
        [row.photo in photos.clean for row in draw_rows(photos, trained, SMALL, "single", 0)[0]]
    )
    assert torch.equal(first.tabled, unseen | (first.leaf < 0))
    plan, _ = draw_rows(photos, trained, SMALL, "single", 0)
    changed = [*plan[:-1], replace(plan[-1], photo="another.png")]
    assert len({plan_key(plan, 48), plan_key(plan, 96), plan_key(changed, 48)}) == 3


def test_a_share_of_the_photos_is_in_black_and_white(tmp_path: Path) -> None:
    folder = draw_photos(tmp_path / "photos", seed=0)
    photos, trained = find_photos(folder, "routers"), find_photos(folder, "experts")
    faded, cpu = replace(SMALL, grey_share=0.6), torch.device("cpu")
    extractor = Extractor(preset("tiny").extractor.shape, ("a clean photo",)).eval()
    coloured, grey = (
        embed(extractor, SEVEN, photos, trained, config, "single", 0, tmp_path / "work", cpu)
        for config in (SMALL, faded)
    )
    plan, held = draw_rows(photos, trained, faded, "single", seed=0)
    same, _ = draw_rows(photos, trained, SMALL, "single", seed=0)
    assert [replace(row, fade=(0, 0)) for row in plan] == [replace(row, fade=(0, 0)) for row in same]
    black_and_white = [i for i, row in enumerate(plan) if row.fade[1] == 100]
    assert 0.1 < len(black_and_white) / len(plan) < 0.5 and held
    for i, row in enumerate(plan):
        kept = row.fade[0]
        for old, new in ((coloured.lq[i], grey.lq[i]), (coloured.hq[i], grey.hq[i])):
            np.testing.assert_array_equal(new[..., kept], old[..., kept])
            if row.fade[1] == 100:
                assert (new == new[..., :1]).all()
        assert torch.equal(coloured.e[i], grey.e[i]) == (row.fade[1] == 0)


def test_real_pairs_are_learned_from(tmp_path: Path) -> None:
    folder = draw_photos(tmp_path / "photos", seed=0)
    for part in ("clean", "degraded"):
        (folder / "lowlight_pairs" / part).mkdir(parents=True)
        for index in range(12):
            picture = np.asarray(draw_photo(100 + index, (70, 60)))
            picture = picture if part == "clean" else picture // 8
            Image.fromarray(picture).save(folder / "lowlight_pairs" / part / f"p{index}.png")
    photos, trained = find_photos(folder, "routers"), find_photos(folder, "experts")
    plan, _ = draw_rows(photos, trained, SMALL, "single", seed=0)
    pairs = [row for row in plan if row.source]
    assert {row.source for row in pairs} == {degraded for _, degraded, _ in (*photos.pairs, *trained.pairs)}
    assert len(pairs) == len({row.source for row in pairs}) and pairs
    assert not any(row.source for row in draw_rows(photos, trained, SMALL, "mixed", seed=0)[0])
    torch.manual_seed(0)
    extractor, cpu = Extractor(preset("tiny").extractor.shape, ("a clean photo",)).eval(), torch.device("cpu")
    data = embed(extractor, SEVEN, photos, trained, SMALL, "single", 0, tmp_path / "work", cpu)
    places = [i for i, row in enumerate(plan) if row.source]
    assert set(data.leaf[places].tolist()) == {list(Task).index(Task.LOWLIGHT)}
    for place in places:
        dark, bright = data.lq[place].astype(int), data.hq[place].astype(int)
        np.testing.assert_array_equal(dark, bright // 8)  # the same window of both


@pytest.mark.parametrize(("side", "wanted"), [(1, 1), (5, 3), (7, 7), (3, 9)])
def test_a_random_window_lies_inside(side: int, wanted: int) -> None:
    image = torch.arange(side * side).reshape(1, 1, side, side)
    for seed in range(20):
        window = random_window(image, wanted, wanted, torch.Generator().manual_seed(seed))
        assert window.shape == (1, 1, min(side, wanted), min(side, wanted))
        assert window[0, 0, -1, -1] - window[0, 0, 0, 0] == (min(side, wanted) - 1) * (side + 1)
