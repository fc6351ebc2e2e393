"""The whole data flow on random weights: modes, sources, batches, sizes, reports and bad input."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unirestorer import Task, UniRestorer
from unirestorer.checkpoint import Checkpoint
from unirestorer.imaging import load_image, save_image, to_pil, to_uint8
from unirestorer.pipeline import choose_device
from unirestorer.report import describe

STAGES = ["estimate", "route", "load", "restore"]


def photos(count: int, height: int = 40, width: int = 56) -> Tensor:
    """Photos of different structure and brightness."""
    random = torch.Generator().manual_seed(count)
    parts = []
    for i in range(count):
        coarse = torch.rand(1, 3, 2 + 3 * i, 3 + 2 * i, generator=random)
        smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        parts.append(smooth * (0.3 + 0.7 * torch.rand(1, generator=random)))
    return torch.cat(parts)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> UniRestorer:
    """The tiny model, its gates sharpened around the DRs of `photos`, so that routes differ."""
    made = UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")
    with torch.no_grad():
        e = made.extractor(photos(8))
        made.router.mean.copy_(e.mean(0))
        made.router.std.copy_(e.std(0) + 1e-6)
        for gate in (made.router.gate_leaf, made.router.gate_level):
            gate.gate.weight.mul_(20)
    return made


# Modes


def test_auto_follows_the_route(model: UniRestorer) -> None:
    x = photos(8)
    result = model(x)
    assert result.image.shape == x.shape
    assert result.image.dtype == torch.float32
    assert 0 <= result.image.min() <= result.image.max() <= 1
    assert result.decision.route.leaf_probs.shape == (8, 19)
    assert result.decision.route.level_probs.shape == (8, 3)
    expected = model.tree.expert_table[result.decision.route.leaf, result.decision.route.level]
    assert torch.equal(result.decision.route.expert, expected)
    assert len(expected.unique()) > 2
    assert torch.equal(result.image, model.experts(x, expected))
    assert not torch.allclose(result.image, x, atol=1e-3)
    assert list(result.decision.seconds) == STAGES


def test_the_three_calls_are_the_whole(model: UniRestorer) -> None:
    x = photos(3)
    estimate = model.estimate(x)
    route = model.route(estimate, {Task.DEHAZE})
    assert estimate.e.norm(dim=-1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    result = model(x, tasks={Task.DEHAZE})
    assert torch.equal(result.decision.route.leaf_probs, route.leaf_probs)
    assert torch.equal(result.image, model.experts(x, route.expert))


@pytest.mark.parametrize("tasks", [{Task.DERAIN}, {Task.DEJPEG, Task.LOWLIGHT}, set(Task)], ids=len)
def test_an_instruction_keeps_to_its_tasks(model: UniRestorer, tasks: set[Task]) -> None:
    x, kept = photos(8), model.tree.mask(tasks)
    route = model(x, tasks=tasks).decision.route
    allowed = set(model.tree.expert_table[kept].flatten().tolist())
    assert set(route.expert.tolist()) <= allowed
    assert kept[route.leaf].all()
    assert (route.leaf_probs[:, ~kept] == 0).all()
    assert torch.equal(route.level_probs, model(x).decision.route.level_probs)
    probs = model.tree.leaf_task_probs(route.leaf_probs[0])
    assert {task for task, prob in probs.items() if prob > 0} <= tasks


@pytest.mark.parametrize("expert", ["0-0", "1-3", "2-18"])
def test_a_forced_expert_restores_every_photo(model: UniRestorer, expert: str) -> None:
    x = photos(3)
    result = model(x, expert=expert)
    number = model.tree.expert_number(expert)
    assert result.decision.route.expert.tolist() == [number] * 3
    assert torch.equal(result.image, model.experts(x, torch.full((3,), number)))
    assert torch.equal(result.decision.route.leaf, model(x).decision.route.leaf)  # the router's own


def test_a_forced_expert_wins_over_an_instruction(model: UniRestorer) -> None:
    result = model(photos(1), expert="2-0", tasks={Task.DEJPEG})
    assert describe(model, result.decision)["expert"] == "2-0"
    assert model.tree.mask({Task.DEJPEG})[result.decision.route.leaf].all()


# Sources, batches, sizes


def test_every_source_gives_the_same_restoration(model: UniRestorer, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    save_image(photos(1), path)
    x = load_image(path)
    array = to_uint8(x)
    expected = model(x)
    sources = (path, str(path), path.read_bytes(), to_pil(x), array, array.astype(np.float32) / 255, x, x[0])
    for source in sources:
        result = model.restore(source)
        assert torch.equal(result.image, expected.image), type(source)
        assert torch.equal(result.decision.route.leaf_probs, expected.decision.route.leaf_probs)
        assert list(result.decision.seconds) == ["decode", *STAGES]
        assert all(seconds >= 0 for seconds in result.decision.seconds.values())


def test_restore_passes_its_options_on(model: UniRestorer) -> None:
    x, told = photos(1, 60, 90), []
    forced = model.restore(x, expert="1-2", tile_px=32, progress=told.append)
    assert torch.equal(forced.image, model.experts(x, torch.tensor([3]), tile_px=32))
    assert told == sorted(told)
    assert told[-1] == 1
    assert model.restore(x, tasks=["denoise"]).decision.route.leaf.tolist()[0] in (6, 7, 8)


@pytest.mark.parametrize("tasks", [Task.DENOISE, "denoise"])
def test_one_task_needs_no_list(model: UniRestorer, tasks: str) -> None:
    """It was taken letter by letter: "unknown task 'd'"."""
    x = photos(1)
    expected = model(x, tasks=[Task.DENOISE])
    assert torch.equal(model(x, tasks=tasks).image, expected.image)
    assert torch.equal(model.inspect(x, tasks).route.leaf_probs, expected.decision.route.leaf_probs)


@pytest.mark.parametrize("tasks", [None, {Task.DENOISE, Task.DESNOW}], ids=["auto", "instruction"])
def test_a_batch_equals_its_photos_one_by_one(model: UniRestorer, tasks: set[Task] | None) -> None:
    x = photos(6)
    whole = model(x, tasks=tasks)
    for i in range(6):
        alone = model(x[i : i + 1], tasks=tasks)
        assert int(alone.decision.route.expert) == int(whole.decision.route.expert[i])
        assert torch.allclose(alone.decision.estimate.e[0], whole.decision.estimate.e[i], atol=1e-5)
        # The fixture divides by the tiny spread of a random tower: rounding of 1e-8 in e grows a lot.
        assert torch.allclose(
            alone.decision.route.leaf_probs[0], whole.decision.route.leaf_probs[i], atol=1e-2
        )
        assert torch.allclose(alone.image[0], whole.image[i], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (33, 21), (1, 300), (240, 350)], ids=str)
def test_any_size_keeps_its_size(model: UniRestorer, size: tuple[int, int]) -> None:
    x = photos(1, *size)
    result = model(x)
    assert result.image.shape == x.shape
    assert result.image.isfinite().all()
    assert describe(model, result.decision)["expert"] in model.tree.expert_names


def test_the_same_photo_twice_is_the_same(model: UniRestorer) -> None:
    x = photos(2)
    before = x.clone()
    assert torch.equal(model(x).image, model(x).image)
    assert torch.equal(x, before)


def test_a_photo_in_black_and_white_stays_one(model: UniRestorer) -> None:
    """And a coloured one beside it keeps its colours, also where the bank is asked without the pipeline."""
    x = photos(2)
    x[0] = x[0, 1]
    plain = model.experts.network(3)(x).clamp(0, 1)
    assert not torch.equal(plain[0, 0], plain[0, 1]), "the expert itself tints it"
    for image in (model(x, expert=model.tree.expert_names[3]).image, model.experts(x, torch.tensor([3, 3]))):
        torch.testing.assert_close(image[0], plain[0].mean(0).expand(3, -1, -1))
        torch.testing.assert_close(image[1], plain[1])


def test_an_expert_is_forced_even_where_the_router_would_choose_it(model: UniRestorer) -> None:
    x = photos(1)
    own = model(x)
    name = model.tree.expert_names[int(own.decision.route.expert)]
    forced = model(x, expert=name)
    assert torch.equal(forced.image, own.image)
    assert describe(model, forced.decision)["forced"] and not describe(model, own.decision)["forced"]


def test_threads_share_a_model(model: UniRestorer) -> None:
    x = photos(4)
    expected = [model(x[i : i + 1]).image for i in range(4)]
    results: dict[int, Tensor] = {}

    def work(i: int) -> None:
        results[i] = model(x[i : i + 1]).image

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.allclose(results[i], expected[i], atol=1e-6) for i in range(4))


# Opening


def test_opening_reads_no_expert_and_a_photo_reads_one(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, real = [], Checkpoint.expert
    monkeypatch.setattr(Checkpoint, "expert", lambda self, name: loads.append(name) or real(self, name))
    model = UniRestorer.from_pretrained(str(tiny_checkpoint), device="cpu")
    assert loads == []
    result = model(photos(1))
    assert loads == [model.tree.expert_names[int(result.decision.route.expert)]]
    model(photos(1))
    assert len(loads) == 1
    assert model.name == tiny_checkpoint.name


def test_a_batch_for_many_experts_reads_each_once(
    model: UniRestorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, real = [], model.experts._load
    monkeypatch.setattr(model.experts, "_load", lambda number: loads.append(number) or real(number))
    monkeypatch.setattr(model.experts, "_keep", 1)
    model.experts._warm.clear()
    experts = model(photos(8)).decision.route.expert.unique()
    assert sorted(loads) == sorted(experts.tolist())


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="unknown device 'gpu': choose auto, cpu or cuda"):
        choose_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no CUDA device is available"):
        UniRestorer.from_pretrained(tmp_path, device="cuda")


# Reports


@pytest.mark.parametrize("forced", [None, "1-4"])
def test_a_report_adds_up(model: UniRestorer, tiny_checkpoint: Path, forced: str | None) -> None:
    x = photos(4)
    result = model(x, expert=forced)
    for i in range(4):
        data = describe(model, result.decision, i)
        assert json.loads(json.dumps(data, allow_nan=False)) == data
        assert list(data["tasks"]) == [task.value for task in Task]
        assert sum(data["tasks"].values()) == pytest.approx(1, abs=1e-5)
        for part, count in (("leaves", 19), ("levels", 3)):
            assert len(data[part]) == count
            assert sum(entry["probability"] for entry in data[part]) == pytest.approx(1, abs=1e-5)
        captions = [entry["probability"] for entry in data["captions"]]
        assert captions == sorted(captions, reverse=True)
        assert 0 < sum(captions) <= 1 + 1e-6
        path = [model.tree.expert_names[n] for n in model.tree.expert_table[data["leaf"]]]
        assert [level["expert"] for level in data["levels"]] == path
        best = [max(data[part], key=lambda entry: entry["probability"]) for part in ("leaves", "levels")]
        assert best[0]["expert"] == path[-1]
        assert best[1]["level"] == data["level"]
        chosen = path[data["level"]]
        assert data["expert"] == (forced or chosen)
        assert data["forced"] == (forced is not None and forced != chosen)
        assert data["expert_name"] == model.tree.words(model.tree.expert_number(data["expert"]))
        assert data["log_e_gran"] == pytest.approx(float(result.decision.estimate.log_e_gran[i].mean()))
        assert 0 <= data["e_gran_percentile"] <= 100
        assert 0 <= data["distance_percentile"] <= 100
        assert set(data["seconds"]) == set(STAGES)
        assert (data["device"], data["checkpoint"]) == ("cpu", tiny_checkpoint.name)


def test_a_reports_place_on_the_map_is_among_its_neighbours(model: UniRestorer) -> None:
    result = model(photos(2))
    place = describe(model, result.decision, 1)["map"]
    xy, drs = model.map.xy[place["neighbors"]], model.map.drs[place["neighbors"]].astype(np.float32)
    assert xy[:, 0].min() <= place["x"] <= xy[:, 0].max()
    assert xy[:, 1].min() <= place["y"] <= xy[:, 1].max()
    distance = np.linalg.norm(drs - result.decision.estimate.e[1].numpy(), axis=1)
    assert distance == pytest.approx(sorted(distance), abs=1e-3)
    assert describe(model, result.decision, 1)["distance"] == pytest.approx(distance.mean(), abs=2e-3)


def test_a_model_without_a_map_restores_and_reports(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "mapless"))
    config = json.loads((folder / "config.json").read_text())
    del config["files"]["map.npz"]
    (folder / "config.json").write_text(json.dumps(config))
    mapless = UniRestorer.from_pretrained(folder, device="cpu")
    data = describe(mapless, mapless(photos(1)).decision)
    assert data["checkpoint"] == "mapless"
    assert not {"map", "distance", "e_gran_percentile"} & set(data)


# Bad input


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_pixels_that_are_not_finite_are_refused(model: UniRestorer, value: float) -> None:
    x = photos(1)
    x[0, 1, 5, 5] = value
    with pytest.raises(ValueError, match="not finite"):
        model(x)
    with pytest.raises(ValueError, match="finite"):
        model.restore(x)


@pytest.mark.parametrize("expert", ["3-0", "2-19", "", "rain"])
def test_an_unknown_expert_is_told_the_known_ones(model: UniRestorer, expert: str) -> None:
    with pytest.raises(ValueError, match="from 0-0 to 2-18"):
        model.restore(photos(1), expert=expert)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [([], "at least one task"), (["sharpen"], "unknown task .sharpen"), ("sharpen", "unknown task .sharpen")],
    ids=str,
)
def test_bad_instructions_are_told(model: UniRestorer, tasks: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.restore(photos(1), tasks=tasks)


def test_a_mask_that_prunes_everything_is_told(model: UniRestorer) -> None:
    with pytest.raises(ValueError, match="prunes every leaf"):
        model.router.route(model.estimate(photos(1)), torch.zeros(19, dtype=torch.bool))


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((5, 5, 7), np.float32),
        torch.zeros(2, 3, 8, 8),
        np.full((4, 4, 3), 3.0),
        "nowhere.png",
        5,
        b"",
    ],
    ids=["channels", "two photos", "values", "path", "number", "empty"],
)
def test_what_is_no_photo_is_told(model: UniRestorer, source: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        model.restore(source)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8), (0, 3, 8, 8)], ids=str)
def test_a_tensor_of_another_shape_is_told(model: UniRestorer, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        model(torch.zeros(shape))
