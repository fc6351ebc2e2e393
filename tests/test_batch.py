"""Routing many photos without a browser."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from helpers import make_tiny_checkpoint
from PIL import Image

from unirestorer import UniRestorer
from unirestorer.degradation import draw_recipe
from unirestorer.demo.handlers import Handlers
from unirestorer.demo.tabs.batch import (
    COLUMNS,
    LIMIT,
    Routed,
    loads,
    recipe_words,
    route_files,
    route_variants,
    summary_html,
    table_html,
    to_csv,
)

EVIL = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def handlers(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    model = UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")
    return Handlers(model, tmp_path_factory.mktemp("cache"))


def make_photos(folder: Path, count: int) -> list[str]:
    random = np.random.default_rng(0)
    paths = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.fromarray(random.integers(0, 40 * (index + 1), (30, 40, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths


def test_each_photo_is_routed_as_it_would_be_alone(handlers: Handlers, tmp_path: Path) -> None:
    photos = make_photos(tmp_path, 4)
    bad = tmp_path / EVIL
    bad.write_text("not a photo")
    shares: list[float] = []
    rows = route_files(handlers, [photos[0], str(bad), *photos[1:]], shares.append)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [row.report is None for row in rows] == [False, True, False, False, False]
    for row, photo in zip([rows[0], *rows[2:]], photos, strict=True):
        alone = handlers.model.restore(photo)
        assert row.report is not None and row.report["leaf"] == int(alone.decision.route.leaf)
        assert row.report["level"] == int(alone.decision.route.level)
    page = summary_html(handlers.model.tree, rows) + table_html(handlers.model.tree, rows)
    assert "4 photos went to" in page and "<img" not in page
    table = list(csv.reader(io.StringIO(to_csv(handlers.model.tree, rows).decode("utf-8-sig"))))
    assert tuple(table[0]) == COLUMNS and len(table) == 6 and all(len(line) == len(COLUMNS) for line in table)


def test_loads_by_hand(handlers: Handlers) -> None:
    def row(level: int, *probs: float) -> Routed:
        return Routed("", {"level": level, "levels": [{"probability": p} for p in probs]})

    hard, soft, uneven = loads(handlers.model.tree, [row(0, 0.8, 0.2, 0.0), row(2, 0.0, 0.2, 0.8)])
    assert hard == [0.5, 0, 0.5] and soft == pytest.approx([0.4, 0.2, 0.4])
    assert uneven == pytest.approx(np.std(soft) / np.mean(soft))
    assert loads(handlers.model.tree, [row(1, 0, 1, 0)])[2] == pytest.approx(2**0.5), "one takes all"
    assert loads(handlers.model.tree, [Routed("", None, "bad")])[2] == 0
    assert "None of these" in summary_html(handlers.model.tree, [Routed("", None, "bad")])


def test_one_photo_in_many_ways_is_drawn_by_its_seed(handlers: Handlers, tmp_path: Path) -> None:
    (photo,) = make_photos(tmp_path, 1)
    first, again, other = ([row.name for row in route_variants(handlers, photo, seed)] for seed in (0, 0, 1))
    assert first == again != other and len(first) == LIMIT


def test_mixtures_are_drawn_where_the_model_knows_mixtures(tmp_path: Path) -> None:
    """The page of mixed degraded its photo as "single" does, by one degradation at a time."""
    folder = make_tiny_checkpoint(tmp_path / "mixed", mixed=True)
    handlers = Handlers(UniRestorer.from_pretrained(folder, device="cpu"), tmp_path / "cache")
    (photo,) = make_photos(tmp_path, 1)
    names = [row.name for row in route_variants(handlers, photo, 0)]
    assert any(name.count(" and ") > 1 for name in names) and not any("compression" in name for name in names)
    recipe = draw_recipe(0, mode="mixed")
    assert names[0] == recipe_words(recipe) and names[0].count("(") == len(recipe.steps)


@pytest.mark.parametrize(("count", "match"), [(0, "no photo"), (LIMIT + 1, "at most")])
def test_too_few_and_too_many_are_refused(handlers: Handlers, count: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        route_files(handlers, ["x.png"] * count)
    with pytest.raises(ValueError, match="seed"):
        route_variants(handlers, None, -1)


def test_a_spreadsheet_runs_no_formula(handlers: Handlers) -> None:
    text = to_csv(handlers.model.tree, [Routed("=cmd|' /C calc'!A0", None, "-1")]).decode("utf-8-sig")
    assert "'=cmd" in text and ",'-1," in text
