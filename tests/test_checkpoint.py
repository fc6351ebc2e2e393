"""A model's folder: what is saved comes back, and every damaged, missing or foreign file is named."""

import errno
import io
import json
import os
import pickle
import re
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import EXTRACTOR, SHAPE, make_tiny_map, make_tiny_tree
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load, save

from training.build.parts import add_expert, add_extractor, add_map, add_mode, add_router, add_tree
from training.config import preset
from unirestorer import checkpoint
from unirestorer.checkpoint import Checkpoint, verify
from unirestorer.config import (
    NAFNetShape,
    NetworkShape,
    Range,
    RestormerShape,
    RetinexFormerShape,
    RouterShape,
)
from unirestorer.degradation.recipe import RANGES
from unirestorer.extractor import Extractor
from unirestorer.files import sha256
from unirestorer.map import DegradationMap
from unirestorer.networks import build_network
from unirestorer.routing import Router
from unirestorer.types import Mode, Task

ROOT = Path(__file__).parent.parent
PARTS = ["extractor.safetensors", "tree.safetensors", "router.safetensors", "map.npz"]
EXPERT = "experts/1-3.safetensors"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def use(folder: Path, name: str) -> object:
    """Read the part whose file is `name`."""
    opened = Checkpoint(folder)
    if name.startswith("experts/"):
        return opened.expert(Path(name).stem)
    kind = Path(name).stem
    return opened.router(opened.tree()) if kind == "router" else getattr(opened, kind)()


def rewrite(folder: Path, change: Change) -> None:
    """Change config.json."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def replace_part(folder: Path, name: str, data: bytes) -> None:
    """Another file in the place of a part, its true hash in config.json, as a stranger could publish it."""
    (folder / name).write_bytes(data)
    rewrite(folder, lambda config: config["files"].update({name: sha256(data)}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def randomise(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def as_half(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What half precision on disk makes of a module's weights."""
    return {k: v.half().float() if v.is_floating_point() else v for k, v in module.state_dict().items()}


def assert_same_weights(loaded: torch.nn.Module, saved: torch.nn.Module) -> None:
    torch.testing.assert_close(dict(loaded.state_dict()), as_half(saved), rtol=0, atol=0)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


# Round trips


def test_an_extractor_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = Extractor(replace(EXTRACTOR, dim=64), ("a clean photo", "a photo with heavy rain")).eval()
    made.caption_features.copy_(F.normalize(torch.randn(2, 64), dim=-1))
    made.logit_scale.fill_(17.0)
    add_extractor(tmp_path, made, {"minutes": 1})
    loaded = Checkpoint(tmp_path).extractor()
    assert_same_weights(loaded, made)
    assert loaded.captions == made.captions
    assert loaded.shape == made.shape
    x = torch.rand(2, 3, 230, 240, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert F.cosine_similarity(loaded(x), made(x)).min() > 0.999
        assert torch.allclose(loaded.caption_probs(made(x)), made.caption_probs(made(x)), atol=0.02)


def test_a_tree_comes_back_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = make_tiny_tree(32)
    add_tree(tmp_path, made, {})
    loaded = Checkpoint(tmp_path).tree()
    for one, other in zip((*loaded.centers, *loaded.parents), (*made.centers, *made.parents), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert loaded.task_sets == made.task_sets
    assert loaded.names == made.names
    assert torch.equal(loaded.expert_table, made.expert_table)


def test_a_router_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tree = make_tiny_tree(32)
    made = Router(32, tree.expert_table, RouterShape(hidden=16, layers=2)).eval()
    randomise(made)
    made.mean.normal_()
    made.std.uniform_(0.5, 1)
    add_router(tmp_path, made, {})
    loaded = Checkpoint(tmp_path).router(tree)
    assert_same_weights(loaded, made)
    e = F.normalize(torch.randn(5, 32), dim=-1)
    one, other = loaded.route(loaded.estimate(e)), made.route(made.estimate(e))
    assert torch.allclose(one.leaf_probs, other.leaf_probs, atol=0.01)
    assert torch.allclose(one.level_probs, other.level_probs, atol=0.01)


@pytest.mark.parametrize(
    "shape",
    [
        NAFNetShape(8, (1, 1), 1, (1, 1), window_px=16, unshuffle=2),
        RestormerShape(8, (1,), 1, (1,), heads=(1, 2), refinement=1),
        RetinexFormerShape(8, (1,), 1, (1,), heads=(1, 2)),
    ],
    ids=lambda shape: shape.kind,
)
def test_an_expert_comes_back(shape: NetworkShape, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = build_network(shape).eval()
    randomise(made)
    add_expert(tmp_path, "1-0", shape, made, {})
    loaded = Checkpoint(tmp_path).expert("1-0")
    assert_same_weights(loaded, made)
    x = torch.rand(1, 3, 40, 30)
    with torch.inference_mode():
        assert torch.allclose(loaded(x), made(x), atol=0.01)
        assert not torch.allclose(made(x), x, atol=0.01)


def test_a_map_comes_back_exactly(tmp_path: Path) -> None:
    made = make_tiny_map(make_tiny_tree(16))
    add_map(tmp_path, made, {})
    loaded = Checkpoint(tmp_path).map()
    for name, value in vars(made).items():
        assert np.array_equal(getattr(loaded, name), value), name
        assert getattr(loaded, name).dtype == value.dtype
    assert loaded.place(made.drs[3].astype(np.float32)).neighbors[0] == 3


def test_stages_add_their_parts_one_by_one(tmp_path: Path) -> None:
    shape = SHAPE
    add_mode(tmp_path, "single")
    for name in ("0-0", "1-0"):
        add_expert(tmp_path, name, shape, build_network(shape), {"steps": 3})
    add_expert(tmp_path, "0-0", shape, build_network(shape), {"steps": 5})
    opened = Checkpoint(tmp_path)
    assert set(opened.config["files"]) == {"experts/0-0.safetensors", "experts/1-0.safetensors"}
    assert opened.config["training"]["experts"] == {"0-0": {"steps": 5}, "1-0": {"steps": 3}}
    assert not opened.has("map.npz")
    with pytest.raises(ValueError, match=r"model\.tree is missing; the training stage"):
        verify(tmp_path)


def test_weights_are_in_half_precision_on_disk(tiny_checkpoint: Path) -> None:
    for name in ("extractor.safetensors", "router.safetensors", EXPERT):
        assert {v.dtype for v in load((tiny_checkpoint / name).read_bytes()).values()} <= {
            torch.float16,
            torch.int64,
        }


def test_a_sound_checkpoint_is_verified(tiny_checkpoint: Path) -> None:
    names = verify(tiny_checkpoint)
    assert set(PARTS) <= set(names)
    assert len(names) == len(PARTS) + 27


# Damage


@pytest.mark.parametrize("name", [*PARTS, EXPERT])
def test_one_flipped_byte_is_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or foreign") as caught:
            use(folder, name)
        assert str(folder / name) in str(caught.value)
        with pytest.raises(ValueError, match=name):
            verify(folder)


def test_every_file_of_a_checkpoint_is_checked(folder: Path) -> None:
    opened = Checkpoint(folder)
    for name in opened.config["files"]:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 128]))
        with pytest.raises(ValueError, match=name):
            opened.read(name)
        (folder / name).write_bytes(whole)
        assert opened.read(name) == whole


def test_a_damaged_file_that_the_tree_does_not_need_is_not_called_checked(folder: Path) -> None:
    def add_stale(config: dict[str, Any]) -> None:
        config["files"]["experts/9-9.safetensors"] = "0" * 64

    rewrite(folder, add_stale)
    with pytest.raises(ValueError, match="9-9"):
        verify(folder)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-7]), "is damaged"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "is damaged"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "another model's": (lambda path: path.write_bytes(save({"x": torch.ones(3)})), "is damaged or foreign"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*PARTS, EXPERT])
def test_a_missing_or_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    harm, message = DAMAGES[damage]
    harm(folder / name)
    with pytest.raises(ValueError, match=message) as caught:
        use(folder, name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_experts_file_in_anothers_place_is_foreign(folder: Path) -> None:
    shutil.copy(folder / "experts/1-2.safetensors", folder / EXPERT)
    with pytest.raises(ValueError, match="foreign"):
        use(folder, EXPERT)


@pytest.mark.parametrize("name", ["extractor.safetensors", "router.safetensors", EXPERT])
def test_weights_of_other_shapes_or_names_are_refused(folder: Path, name: str) -> None:
    tensors = load((folder / name).read_bytes())
    first = min(tensors)
    for foreign in (
        {**tensors, first: torch.zeros(*tensors[first].shape, 2)},
        {key: value for key, value in tensors.items() if key != first},
        {**tensors, "more": torch.zeros(1)},
    ):
        replace_part(folder, name, save(foreign))
        with pytest.raises(ValueError, match=r"does not fit config\.json") as caught:
            use(folder, name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_tree_without_its_tensors_is_refused(folder: Path) -> None:
    tensors = load((folder / "tree.safetensors").read_bytes())
    del tensors["parents.1"]
    replace_part(folder, "tree.safetensors", save(tensors))
    with pytest.raises(ValueError, match=r"tree is damaged \('parents\.1'\)"):
        use(folder, "tree.safetensors")


FOREIGN_TREES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "beyond the level above": lambda parents: parents + 100,
    "too short": lambda parents: parents[:5],
    "fractions": lambda parents: parents.float(),
}


@pytest.mark.parametrize("kind", FOREIGN_TREES)
def test_parents_that_do_not_fit_are_refused(folder: Path, kind: str) -> None:
    tensors = load((folder / "tree.safetensors").read_bytes())
    tensors["parents.2"] = FOREIGN_TREES[kind](tensors["parents.2"]).contiguous()
    replace_part(folder, "tree.safetensors", save(tensors))
    with pytest.raises(ValueError, match="tree"):
        verify(folder)


class Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [*PARTS, EXPERT])
def test_a_pickle_is_never_opened(folder: Path, name: str) -> None:
    trace = folder / "exploited"
    pickled, archived, in_array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pickle.dump(Exploit(trace), pickled)
    torch.save({"x": Exploit(trace)}, archived)
    np.savez(in_array, xy=np.array([Exploit(trace)], dtype=object))
    for file in (pickled, archived, in_array):
        replace_part(folder, name, file.getvalue())
        with pytest.raises(ValueError, match=name):
            use(folder, name)
    assert not trace.exists()
    pickle.loads(pickled.getvalue())  # the trap itself works
    assert trace.exists()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "data", [b"text", b"PK\x03\x04", pytest.param(b"", id="empty"), pytest.param(npy(np.zeros(3)), id="npy")]
)
def test_what_is_no_map_is_refused(folder: Path, data: bytes) -> None:
    replace_part(folder, "map.npz", data)
    with pytest.raises(ValueError, match=r"map\.npz: not a map"):
        use(folder, "map.npz")


def archive(**changed: np.ndarray) -> bytes:
    """A sound map with some arrays replaced."""
    made = make_tiny_map(make_tiny_tree())
    arrays = {field.name: getattr(made, field.name) for field in fields(DegradationMap)}
    data = io.BytesIO()
    np.savez_compressed(data, **{**arrays, **changed})
    return data.getvalue()


@pytest.mark.parametrize(
    "changed",
    [
        {"xy": np.zeros((9, 2), np.float32)},
        {"drs": np.zeros(60, np.float16)},
        {"leaf": np.zeros((60, 2), np.int64)},
        {"gran_reference": np.zeros(0, np.float32)},
        {"distance_reference": np.full(15, np.nan)},
        {"center_xy": np.zeros((27, 3), np.float32)},
        {"xy": np.array(["a"] * 120).reshape(60, 2)},
    ],
    ids=str,
)
def test_a_map_whose_arrays_do_not_fit_is_refused(folder: Path, changed: dict[str, np.ndarray]) -> None:
    replace_part(folder, "map.npz", archive(**changed))
    with pytest.raises(ValueError, match=r"map\.npz: not a map"):
        use(folder, "map.npz")


def test_a_map_that_is_a_bomb_is_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = archive(drs=np.zeros((60, 40_000), np.float16))
    assert len(bomb) < 100_000
    monkeypatch.setattr("unirestorer.map.MAX_BYTES", 2**20)
    monkeypatch.setattr(np, "load", None)  # never reached
    replace_part(folder, "map.npz", bomb)
    with pytest.raises(ValueError, match="over 1 MB when unpacked"):
        use(folder, "map.npz")


@pytest.mark.parametrize("name", ["extractor.safetensors", "tree.safetensors", "router.safetensors", EXPERT])
@pytest.mark.parametrize("data", [b"", b"text", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{}      "], ids=str)
def test_what_is_no_safetensors_file_is_refused(folder: Path, name: str, data: bytes) -> None:
    replace_part(folder, name, data)
    with pytest.raises(ValueError, match=r"no safetensors file|does not fit|tree is damaged"):
        use(folder, name)


def test_weights_that_are_not_finite_fail_the_verification(folder: Path) -> None:
    tensors = load((folder / EXPERT).read_bytes())
    tensors["ending.bias"] = torch.full_like(tensors["ending.bias"], torch.nan)
    replace_part(folder, EXPERT, save(tensors))
    with pytest.raises(ValueError, match=r"1-3\.safetensors: the expert's output is not finite"):
        verify(folder)


# config.json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe\xfa", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"3" * 5000, "is damaged"),
        (b"[]", "expected format 'unirestorer/2', got 'list'"),
        (b"null", "expected format"),
        (b"{}", "got None"),
        (b'{"format": "unirestorer/3"}', "expected format 'unirestorer/2', got 'unirestorer/3'"),
        (b'{"format": "unirestorer/1"}', "got 'unirestorer/1': run `python -m training migrate"),
        (b'{"format": "unirestorer/2"}', "model is missing"),
        (b'{"format": "unirestorer/2", "model": {"modes": 1}}', "model: unknown key 'modes'.*mode, ranges"),
        (b'{"format": {}}', "expected format"),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else "",
)
def test_a_config_of_another_kind_is_named(folder: Path, text: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint(folder)
    assert "config.json" in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(folder))


def put(*path: str | int, value: object) -> Change:
    def change(config: Any) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    def change(config: Any) -> None:
        for key in path[:-1]:
            config = config[key]
        del config[path[-1]]

    return change


SHAPE_OF = ("model", "experts", "1-3")
BAD_CONFIGS: dict[str, tuple[str, Change, str]] = {
    "no files": ("tree.safetensors", drop("files"), "files is missing"),
    "a file less": ("tree.safetensors", drop("files", "tree.safetensors"), "lists no tree"),
    "files no object": ("tree.safetensors", put("files", value=[]), "files should be an object"),
    "hash no text": ("tree.safetensors", put("files", "tree.safetensors", value=5), "is damaged"),
    "no extractor": ("extractor.safetensors", drop("model", "extractor"), r"model\.extractor is missing"),
    "extractor a list": (
        "extractor.safetensors",
        put("model", "extractor", value=[]),
        "extractor should be an object",
    ),
    "unknown extractor key": (
        "extractor.safetensors",
        put("model", "extractor", "wdth", value=3),
        r"model\.extractor: unknown key 'wdth'; known keys",
    ),
    "extractor of text": (
        "extractor.safetensors",
        put("model", "extractor", "width", value="8"),
        r"extractor\.width: expected int, got '8'",
    ),
    "no captions": ("extractor.safetensors", drop("model", "extractor", "captions"), r"extractor\.captions"),
    "no view": ("extractor.safetensors", drop("model", "extractor", "view_px"), "'view_px' is missing"),
    "no routers": ("router.safetensors", drop("model", "routers"), r"model\.routers is missing"),
    "no layers of routers": ("router.safetensors", drop("model", "routers", "layers"), "'layers' is missing"),
    "unknown router key": (
        "router.safetensors",
        put("model", "routers", "size", value=3),
        "'size'; known keys",
    ),
    "no tree": ("tree.safetensors", drop("model", "tree"), r"model\.tree is missing"),
    "no task sets": ("tree.safetensors", drop("model", "tree", "task_sets"), "'task_sets' is missing"),
    "unknown task": (
        "tree.safetensors",
        put("model", "tree", "task_sets", 0, value={"x": 1}),
        "tree is damaged",
    ),
    "names no lists": (
        "tree.safetensors",
        put("model", "tree", "names", value=[1, 2]),
        "names: expected a list",
    ),
    "no experts": (EXPERT, drop("model", "experts"), r"model\.experts is missing"),
    "one expert less": (EXPERT, drop(*SHAPE_OF), "has no expert 1-3: it has 0-0, 1-0"),
    "unknown expert key": (EXPERT, put(*SHAPE_OF, "heads", value=[1]), r"experts\.1-3: unknown key 'heads'"),
    "unknown network": (EXPERT, put(*SHAPE_OF, "kind", value="unet"), "kind 'unet': choose one of nafnet"),
    "no kind": (EXPERT, drop(*SHAPE_OF, "kind"), "unknown network kind None"),
    "huge network": (EXPERT, put(*SHAPE_OF, "width", value=10**9), "1-3: width is 1000000000"),
    "expert no object": (EXPERT, put(*SHAPE_OF, value=[]), r"experts\.1-3: unknown network kind \[\]"),
    "expert a word": (EXPERT, put(*SHAPE_OF, value="nafnet"), r"experts\.1-3: expected an object, got str"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_section_is_named(folder: Path, case: str) -> None:
    name, change, message = BAD_CONFIGS[case]
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        use(folder, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["width", "encoder", "middle", "decoder", "window_px", "unshuffle"])
def test_nothing_that_an_expert_is_may_be_missing(folder: Path, key: str) -> None:
    """A missing key was filled in: an expert without its window loaded with one of 96 px, called sound."""
    rewrite(folder, drop(*SHAPE_OF, key))
    with pytest.raises(ValueError, match=rf"model\.experts\.1-3: the key '{key}' is missing"):
        verify(folder)


@pytest.mark.parametrize("training", [[], "once", {"extractor": {"futures": 3}, "experts": 5, "new": None}])
def test_how_a_model_was_trained_never_refuses_it(folder: Path, training: object) -> None:
    """One training setting of a newer version refused the whole model."""
    rewrite(folder, put("training", value=training))
    assert verify(folder)


def test_training_settings_are_no_part_of_the_shapes(tiny_checkpoint: Path) -> None:
    model = Checkpoint(tiny_checkpoint).config["model"]
    assert set(model["extractor"]) == {"tower", "layers", "width", "dim", "view_px", "captions"}
    assert set(model["routers"]) == {"hidden", "layers"}


@pytest.mark.parametrize("mode", ["single", "mixed"])
def test_a_model_says_what_it_is_for(mode: Mode, tmp_path: Path) -> None:
    add_mode(tmp_path, mode)
    opened = Checkpoint(tmp_path)
    assert opened.mode == mode
    assert list(opened.ranges) == [task for task in Task if task in RANGES[mode]]
    for task, strengths in opened.ranges.items():
        assert strengths == Range(RANGES[mode][task]["in"], RANGES[mode][task]["out"])


BAD_RANGES: dict[str, tuple[Change, str]] = {
    "unknown task": (put("model", "ranges", "deflare", value={}), r"ranges: unknown key 'deflare'; known"),
    "one band": (drop("model", "ranges", "denoise", "out"), "denoise: expected the keys 'in' and 'out'"),
    "no numbers": (put("model", "ranges", "denoise", "in", value=["2", 50]), "expected float, got '2'"),
    "three numbers": (put("model", "ranges", "denoise", "in", value=[1, 2, 3]), "expected 2 entries, got 3"),
    "too large a number": (put("model", "ranges", "denoise", "in", value=[1, 10**400]), "expected float"),
    "upside down": (put("model", "ranges", "denoise", "in", value=[50, 2]), "got 50.0 and 2.0"),
    "no number": (put("model", "ranges", "denoise", "out", value=[50, float("nan")]), "got 50.0 and nan"),
    "none": (drop("model", "ranges"), "ranges is missing"),
}


@pytest.mark.parametrize("case", BAD_RANGES)
def test_bad_ranges_are_named(folder: Path, case: str) -> None:
    change, message = BAD_RANGES[case]
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        verify(folder)


def test_an_unknown_mode_lists_the_known(folder: Path) -> None:
    rewrite(folder, put("model", "mode", value="both"))
    with pytest.raises(ValueError, match=r"model\.mode: unknown 'both': choose one of single, mixed"):
        verify(folder)


UNCHECKED: dict[str, tuple[str, Change]] = {
    "captions a number": ("extractor.safetensors", put("model", "extractor", "captions", value=5)),
    "unknown tower": ("extractor.safetensors", put("model", "extractor", "tower", value="nonsense")),
    "no layers": ("extractor.safetensors", put("model", "extractor", "layers", value=[])),
    "width 0": ("extractor.safetensors", put("model", "extractor", "width", value=0)),
    "negative dim": ("extractor.safetensors", put("model", "extractor", "dim", value=-1)),
    "negative hidden": ("router.safetensors", put("model", "routers", "hidden", value=-1)),
    "one level less in words": ("tree.safetensors", lambda c: c["model"]["tree"]["names"].pop()),
    "one leaf less in words": ("tree.safetensors", lambda c: c["model"]["tree"]["names"][2].pop()),
    "one leaf less counted": ("tree.safetensors", lambda c: c["model"]["tree"]["task_sets"].pop()),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("case", UNCHECKED)
def test_a_section_that_makes_no_sense_is_named(folder: Path, case: str) -> None:
    name, change = UNCHECKED[case]
    rewrite(folder, change)
    with pytest.raises(ValueError):
        use(folder, name)


GIGANTIC: dict[str, tuple[str, Change, str]] = {
    "extractor too wide": (
        "extractor.safetensors",
        put("model", "extractor", "width", value=4096),
        "million parameters",
    ),
    "views too large": (
        "extractor.safetensors",
        put("model", "extractor", "view_px", value=4096),
        "view_px is 4096, expected 8 to 1024",
    ),
    "captions without end": (
        "extractor.safetensors",
        put("model", "extractor", "captions", value=[""] * 1_000_000),
        "million parameters",
    ),
    "routers too deep": (
        "router.safetensors",
        lambda c: c["model"]["routers"].update(hidden=8192, layers=64),
        "million parameters",
    ),
    "expert too deep": (EXPERT, put(*SHAPE_OF, "encoder", value=[200, 200]), "number of blocks"),
    "expert too wide": (
        EXPERT,
        lambda c: c["model"]["experts"]["1-3"].update(width=1024, middle=200),
        "million parameters",
    ),
    "tower of billions": (
        "extractor.safetensors",
        put("model", "extractor", "tower", value="ViT-bigG-14"),
        "up to L",
    ),
}


@pytest.mark.parametrize("case", GIGANTIC)
def test_a_gigantic_network_is_refused_before_it_takes_memory(folder: Path, case: str) -> None:
    name, change, message = GIGANTIC[case]
    rewrite(folder, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message):
        use(folder, name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000, "kilobytes"


def test_a_config_without_end_is_refused_unread(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(ValueError, match="is damaged: it has over 16 MB"):
        Checkpoint(folder)


# Finding


def test_a_checkpoint_is_found_by_path_and_by_name(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkpoint.find_checkpoint(tiny_checkpoint) == tiny_checkpoint
    assert checkpoint.find_checkpoint(str(tiny_checkpoint)) == tiny_checkpoint
    monkeypatch.setattr(checkpoint, "LIBRARY_FOLDER", tiny_checkpoint.parent)
    assert checkpoint.find_checkpoint(tiny_checkpoint.name) == tiny_checkpoint


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "/no/such/folder", "user/..", "../x", "user/", "a\0b"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="no checkpoint") as caught:
        checkpoint.find_checkpoint(name)
    assert repr(name) in str(caught.value)


def test_folders_and_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match=r"no config\.json"):
            checkpoint.find_checkpoint(path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        Checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["someone/no-such-model", "user/na me", "user/" + "y" * 200, "-/-"])
def test_an_unreachable_hub_id_is_one_clear_error_quickly(name: str) -> None:
    """Offline, as conftest.py sets it."""
    start = time.monotonic()
    with pytest.raises(ValueError, match="cannot get checkpoint .* from the hub") as caught:
        checkpoint.find_checkpoint(name)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


def test_an_endless_name_is_no_checkpoint() -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.find_checkpoint("x" * 5000)


@pytest.mark.parametrize("name", ["single", "mixed"])
def test_the_hub_brings_what_the_page_shows_and_no_more(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's curves.png did not come, and everyone got the weights that only evaluation uses."""
    source = ROOT / "checkpoints" / name

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        for path in filter_repo_objects(sorted(contents(source)), allow_patterns=allow_patterns):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).symlink_to(source / path)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    folder = checkpoint.find_checkpoint(f"someone/{name}")
    opened = Checkpoint(folder)
    for part in opened.config["files"]:
        opened.read(part)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (folder / "README.md").read_text())
    assert "curves.png" in pictures and all((folder / picture).is_file() for picture in pictures)
    assert not (folder / "longer.safetensors").exists()


# A full disk


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = contents(folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    tree = Checkpoint(folder).tree()
    network = build_network(SHAPE)
    for write in (
        lambda: add_tree(folder, tree, {}),
        lambda: add_expert(folder, "1-3", SHAPE, network, {}),
        lambda: add_expert(folder, "7-7", SHAPE, network, {}),
        lambda: add_map(folder, make_tiny_map(tree), {}),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert contents(folder) == before
    verify(folder)


def test_a_disk_that_fills_up_between_the_two_files_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expert is written, config.json is not: readers see another hash, and adding it again mends it."""
    real, shape = os.replace, SHAPE

    def full_for_config(source: str, target: str | Path) -> None:
        if Path(target).name == "config.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", full_for_config)
    before = contents(folder)
    with pytest.raises(OSError, match="No space left"):
        add_expert(folder, "1-3", shape, build_network(shape), {})
    monkeypatch.undo()
    after = contents(folder)
    assert {name for name in after if after[name] != before.get(name)} == {EXPERT}
    with pytest.raises(ValueError, match=EXPERT):
        verify(folder)
    add_expert(folder, "1-3", shape, build_network(shape), {})
    assert EXPERT in verify(folder)


def test_a_published_tower_is_sized_without_memory() -> None:
    """How a stranger's config is looked at first; the same tower is then built for good."""
    with torch.device("meta"):
        extractor = Extractor(preset("paper").extractor.shape, ("a clean photo",))
    assert {parameter.device.type for parameter in extractor.parameters()} == {"meta"}
    assert 80e6 < sum(parameter.numel() for parameter in extractor.parameters()) < 95e6  # ViT-B/32
