"""Settings and shapes: what cannot be is refused where it is said, and presets are what they say they are."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.build.experts import Node, network_for
from training.config import NETWORKS, PRESETS, override, preset
from unirestorer.checkpoint import Checkpoint
from unirestorer.config import NetworkShape, network_from_dict
from unirestorer.types import Task

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("shape", NETWORKS.values(), ids=NETWORKS)
def test_a_shape_comes_back_from_json(shape: NetworkShape) -> None:
    assert network_from_dict(json.loads(json.dumps(asdict(shape))), "expert") == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": (1,)}, "length of decoder is 1, expected 3"),
        ({"encoder": (), "decoder": ()}, "length of encoder is 0, expected 1 to 6"),
        ({"encoder": (1,) * 9, "decoder": (1,) * 9}, "length of encoder is 9"),
        ({"encoder": (1, 1, 0)}, "fewest blocks per resolution is 0"),
        ({"middle": 10**12}, "number of blocks"),
        ({"width": 0}, "width is 0"),
        ({"width": 10**9}, "width is 1000000000"),
        ({"width": True}, "width: expected int, got True"),
        ({"window_px": 0}, "window_px is 0"),
        ({"unshuffle": 0}, "unshuffle is 0"),
        ({"unshuffle": 2.0}, "unshuffle: expected int, got 2.0"),
    ],
    ids=str,
)
def test_absurd_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=f"expert.{message}|expert: {message}"):
        network_from_dict({**asdict(NETWORKS["nafnet"]), **change}, "expert")


@pytest.mark.parametrize("kind", ["restormer", "retinexformer"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": (1, 2)}, "length of heads is 2, expected 4"),
        ({"heads": (1, 3, 4, 8)}, r"heads\[1\] is 3, which does not divide 64 channels"),
        ({"heads": (0, 2, 4, 8)}, r"heads\[0\] is 0"),
        ({"width": 9, "heads": (1, 1, 1, 1)}, "width is 9"),
        ({"refinement": -1}, "refinement is -1|unknown key 'refinement'"),
    ],
    ids=str,
)
def test_absurd_attention_is_refused(kind, change, message):
    with pytest.raises(ValueError, match=message):
        network_from_dict({**asdict(NETWORKS[kind]), **change}, "expert")


# --set


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("tree.mode=foo", r"tree\.mode: unknown 'foo': choose one of single, mixed"),
        ("corpus.band=foo", r"corpus\.band: unknown 'foo': choose one of in, out"),
        ("experts.network.kind=foo", "unknown 'foo': choose one of nafnet, restormer, retinexformer"),
        ("experts.network.heads=1,2", "unknown key 'heads'; known keys are width"),
        ("experts.network.width=0", r"experts\.network: width is 0"),
        ("experts.network.encoder=1,1,1", r"experts\.network: length of decoder is 2, expected 3"),
        ("extractor.shape.layers=1", r"extractor\.shape: layers: expected four counts"),
        ("routers.shape.layers=65", r"routers\.shape: layers is 65"),
        ("tree.levels=1,19,7", r"tree: levels must grow"),
        ("experts.lr=1e-3,-1", r"experts\.lr: expected a number from 0, got -1"),
        ("experts.minutes=9,0", r"experts: minutes: expected a number above 0 for each level, got \(9\.0, 0"),
        ("experts.optimizer=sgd", r"experts\.optimizer: unknown 'sgd': choose one of muon, adamw"),
        ("routers.beta=nan", r"routers\.beta: expected a number from 0, got nan"),
        ("experts.batch=many", "expected int, got 'many'"),
        ("experts.stepz=3", "unknown key 'stepz'"),
        ("experts.network=nafnet", "is a group"),
        ("experts.by_node=nafnet", "is a group"),
        ("experts.batch.size=3", "has no parts"),
        ("experts.batch", "expected section.key=value"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(assignment: str, message: str) -> None:
    """Another mode, band or kind of network was accepted: it meant something else, or failed hours later."""
    with pytest.raises(ValueError, match=message):
        override(preset("tiny"), [assignment])


def test_settings_are_overridden() -> None:
    words = ["experts.network.width=16", "experts.steps=4,3", "extractor.pretrained=", "corpus.band=out"]
    config = override(preset("small"), words)
    assert config.experts.network == replace(NETWORKS["nafnet"], width=16)
    assert config.experts.steps == (4, 3) and config.corpus.band == "out"
    assert config.routers == preset("small").routers


def test_another_kind_of_network_has_its_own_shape() -> None:
    """Settings of the network before it may stand in any order: the whole is checked when all are there."""
    words = ["experts.network.kind=restormer", "experts.network.encoder=1,1"]
    words += ["experts.network.decoder=2,2", "experts.network.heads=1,2,4", "experts.network.refinement=3"]
    shape = override(preset("small"), words).experts.network
    assert asdict(shape) == {
        **asdict(NETWORKS["restormer"]),
        **{"encoder": (1, 1), "decoder": (2, 2), "heads": (1, 2, 4), "refinement": 3},
    }


# Presets


def test_unknown_presets_and_modes_list_the_known() -> None:
    with pytest.raises(ValueError, match="unknown preset 'huge': choose one of tiny, small, shipped"):
        preset("huge")
    with pytest.raises(ValueError, match="unknown 'both': choose one of single, mixed"):
        preset("tiny", "both")


@pytest.mark.parametrize("mode", ["single", "mixed"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_sound(name: str, mode: str) -> None:
    config = override(preset(name, mode), [])
    assert config.preset == name and config.tree.mode == mode


def test_the_papers_preset_weighs_loads_as_the_paper_does() -> None:
    """Section 4.1: alpha 0.1, beta 0.01, batch 8, patches of 256; beta was 0.05."""
    routers = preset("paper").routers
    assert (routers.alpha, routers.beta, routers.batch, routers.crop_px) == (0.1, 0.01, 8, 256)


def recorded(mode: str, *path: str) -> dict[str, Any]:
    """What config.json of a shipped model says of its training."""
    data = Checkpoint(ROOT / "checkpoints" / mode).config["training"]
    for key in path:
        data = data[key]
    return data


@pytest.mark.parametrize(
    ("name", "mode", "section", "path"),
    [
        ("shipped", "single", "experts", ("experts", "settings")),
        ("shipped", "mixed", "extractor", ("extractor", "settings")),
        ("shipped", "mixed", "experts", ("experts", "settings")),
        ("shipped", "mixed", "routers", ("routers", "settings")),
        ("shipped", "mixed", "map", ("map",)),
        ("grey", "single", "extractor", ("extractor", "settings")),
        ("grey", "single", "experts", ("experts_on", "settings")),
        ("grey", "single", "routers", ("routers", "settings")),
        ("grey", "single", "map", ("map",)),
    ],
)
def test_presets_are_what_the_shipped_models_record(
    name: str, mode: str, section: str, path: tuple[str, ...]
) -> None:
    """No preset said what shipped. What a record does not have was not there yet: no grey, AdamW alone."""
    settings, record = asdict(getattr(preset(name, mode), section)), recorded(mode, *path)
    for key in settings.keys() - {"shape", "network", "by_node", "neighbors"}:  # see the next test
        value = record.get(key, "adamw" if key == "optimizer" else 0)
        assert settings[key] == (value if isinstance(value, str) else pytest.approx(value, rel=2e-3)), key


@pytest.mark.parametrize("mode", ["single", "mixed"])
def test_presets_have_the_shapes_of_the_shipped_models(mode: str) -> None:
    config, opened = preset("shipped", mode), Checkpoint(ROOT / "checkpoints" / mode)
    tree = opened.tree()
    assert tuple(map(len, tree.centers)) == config.tree.levels
    assert opened.extractor().shape == config.extractor.shape
    assert opened.router(tree).shape == config.routers.shape
    for number, name in enumerate(tree.expert_names):
        leaves = (tree.expert_table == number).any(1).nonzero().flatten().tolist()
        tasks = {tasks for leaf in leaves for tasks in tree.task_sets[leaf]}
        task = Task(next(iter(next(iter(tasks))))) if mode == "single" and len(tasks) == 1 else None
        node = Node(*tree.level_of(number), rows=np.zeros(0), task=task)
        assert network_for(node, config.experts) == opened.shape(name), name
