"""Comparing experts without a browser."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unirestorer import UniRestorer
from unirestorer.demo.handlers import Handlers, Memory
from unirestorer.demo.photos import centre
from unirestorer.demo.tabs.compare import AMPLIFIED, EXTRA, Compared, compare, panes_html
from unirestorer.imaging import load_image

EVIL = '"><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def handlers(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    model = UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")
    return Handlers(model, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def memory(handlers: Handlers, tmp_path_factory: pytest.TempPathFactory) -> Memory:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return handlers.auto(str(path))


def test_panes_come_one_by_one_and_show_what_changed(handlers: Handlers, memory: Memory) -> None:
    tree, route = handlers.model.tree, memory.decision.route
    path = [tree.expert_names[i] for i in tree.expert_table[int(route.leaf)].tolist()]
    other = next(name for name in tree.expert_names if name not in path)
    steps = list(compare(handlers, memory, [other, path[0]]))
    assert [len(panes) for panes in steps] == [2, 3, 4, 5], "a double is shown once"
    photo, *results = steps[-1]
    assert [pane.expert for pane in results] == [*path, other]
    assert [pane.expert for pane in results if "auto" in pane.notes] == [tree.expert_names[int(route.expert)]]
    x = load_image(photo.picture)
    np.testing.assert_array_equal(x.numpy(), load_image(memory.photo).numpy())
    for pane in results:
        difference = (load_image(pane.picture) - x).abs()
        assert pane.change == pytest.approx(255 * float(difference.mean()), abs=0.3)
        shown = load_image(pane.difference)
        torch.testing.assert_close(shown, (AMPLIFIED * difference).clamp(0, 1), atol=0.012, rtol=0)


def test_only_so_many_experts_are_added(handlers: Handlers, memory: Memory) -> None:
    names = handlers.model.tree.expert_names
    panes = list(compare(handlers, memory, names))[-1]
    assert len(panes) <= 1 + handlers.model.tree.levels + EXTRA
    with pytest.raises(ValueError, match="9-9"):
        next(compare(handlers, memory, ["9-9"]))


def test_large_photos_are_compared_at_their_own_pixels() -> None:
    x = torch.rand(1, 3, 12, 110)
    middle = centre(x, 100)
    assert middle.shape == (1, 3, 12, 100) and torch.equal(middle[..., 0], x[..., 5])


def test_markup_is_safe_and_says_what_to_do_first() -> None:
    assert "Restore tab" in panes_html([])
    markup = panes_html([Compared("", EVIL, EVIL), Compared("1-0", EVIL, "a.png", "b.png", 1.0, (EVIL,))])
    assert "<img src=x" not in markup
    assert len(re.findall(r"<img ", markup)) == 3
