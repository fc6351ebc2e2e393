"""All stages of `python -m training` on drawn photos, and what a kill in the middle does to them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.__main__ import main, parse
from training.build import experts as train_experts
from training.build.data import Corpus, Entry, Row, fade, find_photos
from training.build.draw import draw_photos
from training.build.experts import Node, Trainer, draws, kept_loss, nodes_of
from training.build.extractor import accuracy_of, balanced_rows
from training.build.parts import add_extractor, add_mode
from training.build.stages import make_run
from training.config import CorpusConfig, preset
from training.measure.ablate import subtree
from training.measure.evaluate import longer_bank
from training.measure.shapes import SHAPES
from training.measure.tables import ablation, overhead, shapes
from unirestorer.checkpoint import Checkpoint, verify
from unirestorer.extractor import Extractor
from unirestorer.pipeline import UniRestorer
from unirestorer.tree import DegradationTree
from unirestorer.types import Task

ROOT = Path(__file__).parent.parent
EXPERT_STEPS = ["--set", "experts.steps=60,2,1", "--set", "experts.minutes=9,9,9", "--set", "tree.levels=1,7"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    assert main(["all", "--preset", "tiny", "--out", str(out), "--workers", "1", "--device", "cpu"]) == 0
    return out


def test_every_stage_adds_its_part(trained: Path) -> None:
    parts = verify(trained)
    assert len([name for name in parts if name.startswith("experts/")]) == 27
    assert {"extractor.safetensors", "tree.safetensors", "router.safetensors", "map.npz"} <= set(parts)
    training = Checkpoint(trained).config["training"]
    assert set(training) == {"extractor", "tree", "experts", "routers", "map"}
    assert 0 <= training["extractor"]["held_out"]["in"]["type_accuracy"] <= 1
    assert set(training["extractor"]["held_out"]["out"]["per_source"]) == {"."}


def test_the_result_serves(trained: Path) -> None:
    model = UniRestorer.from_pretrained(trained, device="cpu")
    x = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    result = model.restore(x, tasks={Task.DENOISE})
    assert result.image.shape == x.shape
    assert set(model.tree.task_sets[int(result.decision.route.leaf)]) == {frozenset({Task.DENOISE})}


def test_a_second_run_changes_no_weights(trained: Path) -> None:
    before = Checkpoint(trained).config["files"]
    words = ["--preset", "tiny", "--out", str(trained), "--workers", "1", "--device", "cpu"]
    assert main(["experts", *words]) == 0
    assert Checkpoint(trained).config["files"] == before


def test_all_is_trained_on_for_a_fair_comparison(trained: Path, tmp_path: Path) -> None:
    """As many steps as a leaf and its ancestors have in all; evaluate takes the weights, and no others."""
    words = ["--preset", "tiny", "--out", str(trained), "--workers", "1", "--device", "cpu"]
    files = Checkpoint(trained).config["files"]
    assert main(["longer", *words]) == 0
    assert Checkpoint(trained).config["files"] == files
    longer = trained / "work" / "longer.safetensors"
    assert not torch.equal(
        load_file(longer)["intro.weight"],
        Checkpoint(trained).tensors("experts/0-0.safetensors")["intro.weight"].half(),
    )
    bank = longer_bank(Checkpoint(trained), longer, torch.device("cpu"))
    x = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert bank(x, torch.tensor([0])).shape == x.shape
    for wrong in (trained / "router.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(ValueError, match=wrong.name):
            longer_bank(Checkpoint(trained), wrong, torch.device("cpu"))


def test_a_killed_expert_training_goes_on_where_it_was(trained: Path, tmp_path: Path) -> None:
    """kill -9 in the middle, the same command again: the weights are those of an uninterrupted run."""
    weights = []
    for name in ("uninterrupted", "killed"):
        out = tmp_path / name
        common = ["--preset", "tiny", "--out", str(out), "--workers", "1", "--device", "cpu", *EXPERT_STEPS]
        subprocess.run(["cp", "-r", trained, out], check=True)
        for state in (out / "work" / "experts").iterdir():
            state.unlink()
        assert main(["tree", *common]) == 0
        state = out / "work" / "experts" / "0-0.state.safetensors"
        if name == "killed":
            code = (
                "import sys, training.build.loop, training.__main__ as m\n"
                "training.build.loop.SAVE_EVERY_S = 0.0\n"
                "m.main(sys.argv[1:])"
            )
            process = subprocess.Popen([sys.executable, "-c", code, "experts", *common], cwd=ROOT)
            deadline = time.monotonic() + 120
            while not state.is_file() and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert state.is_file()
        assert main(["experts", *common]) == 0
        weights.append(load_file(out / "experts" / "0-0.safetensors"))
        assert Checkpoint(out).config["training"]["experts"]["0-0"]["steps"] == 60
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], atol=2e-3, rtol=1e-2)


def test_budgets_serve_a_tree_of_any_depth(trained: Path, tmp_path: Path) -> None:
    """Fewer values than levels, and more levels than the shipped trees have: both were an IndexError."""
    add_mode(tmp_path, "single")
    add_extractor(tmp_path, Checkpoint(trained).extractor(), {})
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "corpus").symlink_to(trained / "work" / "corpus")
    words = ["--preset", "tiny", "--workers", "1", "--device", "cpu", "--out", str(tmp_path)]
    settings = ("tree.levels=1,2,4,8", "experts.steps=3,2", "experts.minutes=9", "experts.lr=0.01")
    words += ["--data", str(trained / "work" / "drawn"), *(w for s in settings for w in ("--set", s))]
    for stage in ("tree", "experts", "routers", "map"):
        assert main([stage, *words]) == 0
    records = Checkpoint(tmp_path).config["training"]["experts"]
    steps = {name: records[name]["steps"] for name in records if name != "settings" and "-" in name}
    assert len(steps) == 15 and steps == {name: 3 if name == "0-0" else 2 for name in steps}
    model = UniRestorer.from_pretrained(tmp_path, device="cpu")
    result = model.restore(torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0)), expert="3-7")
    assert result.decision.route.level_probs.shape == (1, 4)


def test_an_expert_is_measured_while_it_is_trained(trained: Path, tmp_path: Path) -> None:
    """Before the first step and after the last, in evaluation mode; the curve comes back with the weights."""
    run = make_run(parse(["experts", "--preset", "tiny", "--out", str(trained), "--device", "cpu"]))
    node = nodes_of(run.checkpoint.tree(), run.leaf, run.corpus)[3]
    calls = []

    def check(of: Node, network: torch.nn.Module) -> float:
        calls.append((of.name, network.training))
        return float(len(calls))

    trainer = Trainer(run.corpus, run.config.experts, tmp_path, 0, run.device, compile=False, check=check)
    _, _, progress = trainer.train(node, None, quiet=True)
    assert calls == [(node.name, False)] * 2
    assert [(step, value) for step, _, value in progress.curve] == [(0, 1.0), (progress.step, 2.0)]


def test_a_finished_model_is_trained_on(trained: Path, tmp_path: Path) -> None:
    """--init: with almost no training the extractor, ALL and the types are the old model's, the leaves are
    not."""
    out = tmp_path / "on"
    words = ["--preset", "tiny", "--workers", "1", "--device", "cpu", "--work", str(trained / "work" / "on")]
    settings = ["extractor.steps=1", "extractor.lr=1e-9", "experts.steps=1,1,1", "experts.lr=1e-9,1e-9,1e-9"]
    words += ["--out", str(out), "--init", str(trained), *(w for s in settings for w in ("--set", s))]
    for stage in ("extractor", "tree", "experts"):
        assert main([stage, *words]) == 0
    old, new = Checkpoint(trained), Checkpoint(out)
    for name in ("extractor.safetensors", "experts/0-0.safetensors", "experts/1-3.safetensors"):
        before, after = (load_file(model.folder / name) for model in (old, new))
        for key, value in before.items():
            if key != "caption_features" and "running_" not in key and value.is_floating_point():
                torch.testing.assert_close(after[key].float(), value.float(), atol=1e-3, rtol=1e-2)
    parent, leaf = (load_file(out / f"experts/{name}.safetensors") for name in ("1-0", "2-0"))
    torch.testing.assert_close(leaf["intro.weight"], parent["intro.weight"], atol=1e-3, rtol=1e-2)
    fit = (old.extractor().caption_features * new.extractor().caption_features).sum(1)
    assert fit.min() > 0.95, "the new text tower learned the old captions' features"
    training = new.config["training"]
    assert training["extractor"]["init_sha256"] == old.config["files"]["extractor.safetensors"]
    assert "init_sha256" in training["experts"]["1-0"] and "init_sha256" not in training["experts"]["2-0"]


def test_an_extractor_that_keeps_its_drs_keeps_its_normalisation(trained: Path, tmp_path: Path) -> None:
    """Trained on with `keep` its weights move, and what it normalises by stays."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "corpus").symlink_to(trained / "work" / "corpus")
    words = [
        "extractor",
        "--preset",
        "tiny",
        "--workers",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        "--data",
        str(trained / "work" / "drawn"),
        "--set",
        "extractor.keep=30",
    ]
    assert main(words) == 2, "there are no DRs to keep"
    settings = ("extractor.steps=3", "extractor.grey_share=0.5")
    assert main([*words, "--init", str(trained), *(w for s in settings for w in ("--set", s))]) == 0
    old, new = (load_file(folder / "extractor.safetensors") for folder in (trained, tmp_path))
    assert any("running_" in key for key in old)
    assert all(torch.equal(new[key], old[key]) for key in old if "running_" in key)
    assert not torch.equal(new["tower.tower.conv1.0.weight"], old["tower.tower.conv1.0.weight"])


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the trained model, and the words that train its experts on."""
    out = tmp_path / "on"
    shutil.copytree(trained, out, ignore=shutil.ignore_patterns("work"))
    work = tmp_path / "work"
    work.mkdir()
    (work / "corpus").symlink_to(trained / "work" / "corpus")
    words = ["experts", "--preset", "tiny", "--workers", "1", "--device", "cpu", "--out", str(out)]
    words += ["--init", str(trained), "--work", str(work), "--data", str(trained / "work" / "drawn")]
    return out, words


def test_some_experts_of_a_model_are_trained_on(trained: Path, copied: tuple[Path, list[str]]) -> None:
    """--only: those change, all else stays, and the record tells the steps before and after."""
    out, words = copied
    assert main([*words, "--only", "1-2", "2-7"]) == 0
    old, new = Checkpoint(trained).config, Checkpoint(out).config
    changed = {name for name in old["files"] if old["files"][name] != new["files"][name]}
    assert changed == {"experts/1-2.safetensors", "experts/2-7.safetensors"}
    assert old["files"].keys() == new["files"].keys() and verify(out)
    for name, steps in (("1-2", 3), ("2-7", 2)):
        before, after = (config["training"]["experts"][name] for config in (old, new))
        assert after["init_steps"] == before["steps"] and after["steps"] == before["steps"] + steps
        assert after["init_sha256"] == old["files"][f"experts/{name}.safetensors"]
    assert new["training"]["experts_on"]["only"] == ["1-2", "2-7"]
    assert new["training"]["experts"]["settings"] == old["training"]["experts"]["settings"]


def test_routers_of_a_model_are_trained_on(trained: Path, copied: tuple[Path, list[str]]) -> None:
    """With the tree of --init its routers are where training starts; with another they are new."""
    out, words = copied
    words[0] = "routers"
    slow = [w for setting in ("routers.lr=1e-9", "routers.steps=2") for w in ("--set", setting)]
    assert main([*words, *slow]) == 0
    old, new = (Checkpoint(folder) for folder in (trained, out))
    for key, value in old.tensors("router.safetensors").items():
        torch.testing.assert_close(new.tensors("router.safetensors")[key], value, atol=1e-4, rtol=1e-3)
    assert new.config["training"]["routers"]["init_sha256"] == old.config["files"]["router.safetensors"]
    run = make_run(parse([*words, "--set", "routers.shape.hidden=16"]))
    assert run.old_router(run.checkpoint.tree()) is None


def test_what_an_expert_did_in_colour_is_kept() -> None:
    """Patches in black and white are compared with the clean ones, the others with the earlier answers."""
    lq, hq = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    gain, earlier = torch.tensor(0.5, requires_grad=True), torch.tensor(0.25, requires_grad=True)
    faded = torch.tensor([True, False])
    loss = kept_loss(lambda x: gain * x, lambda x: earlier * x, lq, hq, faded, keep=3.0)
    learned, kept = (0.5 * lq[0] - hq[0]).abs().mean(), 0.25 * lq[1].mean()
    torch.testing.assert_close(loss, (learned + 3 * kept) / 2)
    loss.backward()
    assert gain.grad is not None and earlier.grad is None
    assert kept_loss(lambda x: x, lambda x: x, lq, hq, torch.tensor([False, False]), keep=3.0) == 0


def test_an_expert_is_trained_on_beside_its_earlier_answers(
    trained: Path, copied: tuple[Path, list[str]]
) -> None:
    out, words = copied
    settings = ("experts.grey_share=0.5", "experts.keep=1")
    assert main([*words, "--only", "1-2", *(w for s in settings for w in ("--set", s))]) == 0
    old, new = (load_file(folder / "experts/1-2.safetensors") for folder in (trained, out))
    assert not torch.equal(new["intro.weight"], old["intro.weight"])
    assert Checkpoint(out).config["training"]["experts_on"]["settings"]["keep"] == 1


def test_lq_and_hq_lose_their_colours_alike(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(train_experts, "pixel_loss", lambda network, lq, hq: seen.append((lq, hq)))
    words = ["experts", "--preset", "tiny", "--out", str(trained), "--set", "experts.batch=200"]
    run = make_run(parse(words))
    config, degraded = replace(run.config.experts, grey_share=0.5), np.flatnonzero(run.corpus.recipe >= 0)
    trainer = Trainer(run.corpus, config, run.work, 0, run.device, compile=False)
    places = draws(run.corpus, degraded, trainer.clean, config, (0,))(0)[0]
    trainer._loss(torch.nn.Identity(), None, torch.from_numpy(places))
    (lq, hq), (coloured_lq, coloured_hq) = seen[0], run.corpus.cut(torch.from_numpy(places[:, :4]), 32)
    assert torch.equal(lq, fade(coloured_lq, torch.from_numpy(places[:, 4:])))
    assert torch.equal(hq, fade(coloured_hq, torch.from_numpy(places[:, 4:])))
    grey = [(x == x[:, :1]).flatten(1).all(1) for x in (lq, hq)]
    assert 0.15 < grey[0].float().mean() < 0.35 and grey[1][grey[0]].all()


def test_a_finished_trees_leaves_are_found_again(trained: Path, tmp_path: Path) -> None:
    """Without the stage's own record every recipe goes to the nearest leaf that knows its tasks."""
    words = ["tree", "--preset", "tiny", "--out", str(trained), "--device", "cpu"]
    run, again = (make_run(parse([*words, *more])) for more in ([], ["--work", str(tmp_path)]))
    again.corpus, again.drs = run.corpus, run.drs
    assert run.leaf_file.is_file() and not again.leaf_file.is_file()
    assert (again.leaf == run.leaf).mean() > 0.9
    sets = run.checkpoint.tree().task_sets
    for entry, leaf in zip(run.corpus.entries, again.leaf, strict=True):
        assert frozenset(map(Task, entry.tasks)) in sets[leaf]


def test_only_experts_of_the_same_kind_of_photo_are_trained_on(trained: Path, tmp_path: Path) -> None:
    """A cluster of "mixed" has a number that means a type in "single": it must not start from that type."""
    words = ["all", "--preset", "tiny", "--out", str(tmp_path), "--init", str(trained), "--device", "cpu"]
    starts = {}
    for mode in ("single", "mixed"):
        run = make_run(parse([*words, "--mode", mode]))
        starts[mode] = [run.old_expert(f"{level}-0", level) is not None for level in range(3)]
    assert starts == {"single": [True, True, False], "mixed": [True, False, False]}


@pytest.mark.parametrize("mode", ["single", pytest.param("mixed", marks=pytest.mark.slow)])
def test_each_part_is_ablated(trained: Path, tmp_path: Path, mode: str) -> None:
    """Every row of every table, on drawn photos, from experts that the rows share."""
    words = ["ablate", "--preset", "tiny", "--mode", mode, "--out", str(tmp_path), "--workers", "1"]
    assert main([*words, "--device", "cpu"]) == 2, "there is no extractor yet"
    words += ["--init", str(trained), "--device", "cpu", "--set", "experts.minutes=0.005,0.005,0.005"]
    assert main(words) == 0
    measured = json.loads((tmp_path / "metrics.json").read_text())[f"ablation-{mode}"]
    rows = {(row["table"], row["row"]): row for row in measured["rows"]}
    text = "\n".join(ablation(measured))
    if mode == "single":
        divisions = ("our extractor", "an untrained tower", "known strength")
        assert set(rows) == {("rain in four", name) for name in divisions}
        assert "| known strength |" in text
        return
    of_table = {table: [name for t, name in rows if t == table] for table, _ in rows}
    assert of_table["fineness"] == ["1", "2", "4", "8", "16"]
    assert of_table["levels"] == ["{8}", "{1, 8}", "{4, 8}", "{1, 4, 8}", "{1, 4, 8, 16}"]
    assert len(of_table["routers"]) == 3 and len(of_table["losses"]) == 8
    assert rows["fineness", "8"]["in"] == rows["levels", "{8}"]["in"]
    for row in rows.values():
        for band in ("in", "out"):
            assert 5 < row[band] < 60 and sum(row.get(f"load {band}", [100])) == pytest.approx(100, abs=2)
    assert len(list((tmp_path / "work" / "ablate").glob("*/experts/*"))) == 31
    assert "**Ablation, losses**" in text and "| all, beta 0.05 |" in text


def test_some_levels_of_a_tree_are_a_tree() -> None:
    """The paths of {1, 2, 4} without the middle level, and without all but the middle."""
    centers = tuple(torch.randn(count, 3) for count in (1, 2, 4))
    parents = (torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([0, 1, 1, 0]))
    sets = tuple({frozenset({task}): 5} for task in list(Task)[:4])
    tree = DegradationTree(centers, parents, sets, (("all",), ("a", "b"), tuple("wxyz")))
    small, nodes, leaf = subtree(tree, (1, 4))
    small.check()
    assert small.expert_table.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4]]
    assert nodes.tolist() == [0, 3, 4, 5, 6] and leaf.tolist() == [0, 1, 2, 3]
    middle, nodes, leaf = subtree(tree, (2,))
    middle.check()
    assert nodes.tolist() == [1, 2] and leaf.tolist() == [0, 1, 1, 0] and middle.names == (("a", "b"),)
    first, second, third, fourth = list(Task)[:4]
    assert middle.task_sets == (
        {frozenset({first}): 5, frozenset({fourth}): 5},
        {frozenset({second}): 5, frozenset({third}): 5},
    )


def test_shapes_are_compared_per_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.measure.shapes.WINDOWS", 4)
    words = ["shapes", "--preset", "tiny", "--out", str(tmp_path), "--workers", "1", "--device", "cpu"]
    settings = ["--set", "experts.steps=1,1,1"]
    assert main([*words, *settings, "--tasks", "denoise"]) == 0
    measured = json.loads((tmp_path / "metrics.json").read_text())["shapes"]
    assert {row["task"] for row in measured["rows"]} == {"denoise"} and len(measured["rows"]) == len(SHAPES)
    assert main([*words, *settings]) == 0
    measured = json.loads((tmp_path / "metrics.json").read_text())["shapes"]
    rows = {(row["shape"], row["task"]): row for row in measured["rows"]}
    assert set(rows) == {(shape, task.value) for shape in SHAPES for task in Task}
    assert all(row["steps"] == 1 and 5 < row["psnr"] < 60 for row in rows.values())
    untrained = [row for row in rows.values() if row["kind"] == "nafnet"]  # the others start anywhere
    assert all(abs(row["psnr"] - row["input"]) < 0.1 for row in untrained)
    table = shapes(measured)
    assert len(table) == 2 + 2 + len(SHAPES) + 1 and "retinexformer" in "".join(table)


def test_the_cost_of_routing_is_measured_beside_an_experts(trained: Path) -> None:
    assert main(["costs", "--checkpoint", str(trained), "--device", "cpu", "--sizes", "--experts"]) == 0
    measured = json.loads((trained / "metrics.json").read_text())["overhead"]
    rows = {row["part"]: row for row in measured["rows"]}
    model = UniRestorer.from_pretrained(trained, device="cpu")
    assert rows["chosen expert"]["parameters"] == sum(
        p.numel() for p in model.experts.network(0).parameters()
    )
    assert rows["all 27 experts"]["gflops"] == pytest.approx(27 * rows["chosen expert"]["gflops"])
    layers = [m for m in model.router.modules() if isinstance(m, torch.nn.Linear)]
    multiplied = sum(layer.weight.numel() for layer in layers if layer not in _noise(model))
    assert rows["heads and routers"]["gflops"] == pytest.approx(2 * multiplied / 1e9, abs=1e-3)
    assert "| heads and routers |" in "\n".join(overhead(measured))
    assert overhead(None) == []


def _noise(model: UniRestorer) -> list[torch.nn.Module]:
    """Layers that only training runs."""
    return [model.router.gate_leaf.noise, model.router.gate_level.noise]


@pytest.mark.parametrize("mode", ["single", "mixed"])
def test_clean_crops_get_their_share_of_the_extractors_batches(tmp_path: Path, mode: str) -> None:
    photos = find_photos(draw_photos(tmp_path / "photos"), "experts")
    size = CorpusConfig(window_px=32, recipes=2, photos_per_recipe=2, clean=5)
    corpus = Corpus.build(tmp_path / "corpus", photos, size, mode, seed=0, workers=1)  # type: ignore[arg-type]
    groups, share = balanced_rows(corpus, 0.3)
    clean = [bool((corpus.recipe[rows] < 0).all()) for rows in groups]
    assert sum(clean) == 1 and sum(map(len, groups)) == len(corpus)
    assert share[clean.index(True)] == pytest.approx(0.3) and share.sum() == pytest.approx(1)
    rest = [float(one) for one, is_clean in zip(share, clean, strict=True) if not is_clean]
    assert rest == pytest.approx([0.7 / len(rest)] * len(rest))


def test_a_photo_that_looks_like_another_cluster_trains_that_one_too() -> None:
    """Recipe 0 belongs to leaf 0 and recipe 1 to leaf 3; the second window of recipe 0 looks like leaf 3."""
    sets = ({frozenset({Task.DENOISE}): 2},) * 4
    parents = (torch.zeros(1).long(), torch.zeros(2).long(), torch.tensor([0, 0, 1, 1]))
    centers = tuple(torch.eye(8)[: len(level)] for level in parents)
    tree = DegradationTree(centers, parents, sets, (("",), ("",) * 2, ("",) * 4))
    entries = [Entry(("denoise",), "a photo with heavy noise", {})] * 2
    rows = [Row(recipe, "", 0) for recipe in (0, 0, 1, -1)]
    corpus = Corpus(Path(), entries, rows, np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 8, 3)))
    leaf, e = np.array([0, 3]), torch.eye(8)[[0, 3, 3, 3]]
    of_recipe = {node.name: node.rows.tolist() for node in nodes_of(tree, leaf, corpus)}
    of_both = {node.name: node.rows.tolist() for node in nodes_of(tree, leaf, corpus, e)}
    assert of_recipe == {
        "0-0": [0, 1, 2],
        "1-0": [0, 1],
        "1-1": [2],
        "2-0": [0, 1],
        "2-1": [],
        "2-2": [],
        "2-3": [2],
    }
    assert of_both == of_recipe | {"1-1": [1, 2], "2-3": [1, 2]}


def test_windows_of_types_that_the_extractor_never_saw_count_as_missed() -> None:
    config = preset("tiny").extractor
    extractor = Extractor(config.shape, ("a clean photo", "a photo with heavy noise")).eval()
    extractor.caption_features.copy_(torch.eye(config.shape.dim)[:2])
    known, unknown = "a photo with heavy noise", "a photo with thick haze"
    entries = [Entry(("denoise",), known, {}), Entry(("dehaze",), unknown, {})]
    corpus = Corpus(Path(), entries, [Row(recipe, "a.png", 0) for recipe in (-1, 0, 1)], *[np.zeros(3)] * 2)
    accuracy = accuracy_of(extractor, corpus, torch.eye(config.shape.dim)[[0, 1, 1]])
    assert accuracy["per_type"] == {"clean": 1.0, "haze": 0.0, "noise": 1.0}
    assert accuracy["degree_per_type"] == {"haze": 0.0, "noise": 1.0}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["all", "--preset", "small", "--out", "{tmp}/o"], "--data is missing"),
        (["all", "--preset", "small", "--data", "{tmp}/none", "--out", "{tmp}/o"], "no folder"),
        (["all", "--preset", "small", "--data", "{tmp}", "--out", "{tmp}/o"], "got no image"),
        (["all", "--preset", "huge", "--out", "{tmp}/o"], "unknown preset"),
        (["all", "--preset", "tiny", "--out", "{tmp}/o", "--set", "experts.stepz=3"], "unknown key 'stepz'"),
        (["all", "--preset", "tiny", "--out", "{tmp}/o", "--set", "experts.batch=many"], "expected int"),
        (["experts", "--preset", "tiny", "--out", "{tmp}/o", "--shard", "3/2"], "--shard"),
        (["experts", "--preset", "tiny", "--out", "{tmp}/o", "--only", "1-2"], "--only"),
        (["experts", "--preset", "tiny", "--out", "{tmp}/o", "--set", "experts.keep=1"], "experts.keep"),
        (["tree", "--preset", "tiny", "--out", "{tmp}/o"], "no checkpoint"),
        (["all", "--preset", "tiny", "--out", "{tmp}/o", "--init", "{tmp}/x"], "no checkpoint"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("{tmp}", str(tmp_path)) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert sentence in lines[-1]
    assert len(lines) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_stage_of_the_paper_preset_takes_two_steps(tmp_path: Path) -> None:
    settings = [
        *("extractor.pretrained=", "extractor.steps=2", "extractor.batch=2", "corpus.recipes=3"),
        *("corpus.photos_per_recipe=2", "corpus.clean=4", "tree.levels=1,7", "tree.minimum_samples=1"),
        *("experts.steps=2,2,2", "experts.batch=1", "experts.patch_px=32", "routers.recipes=3"),
        *("routers.photos_per_recipe=2", "routers.table_rows=8", "routers.crop_px=64", "routers.steps=2"),
        *("map.points=40", "map.neighbors=5"),
    ]
    data = draw_photos(tmp_path / "photos")
    words = ["all", "--preset", "paper", "--data", str(data), "--out", str(tmp_path / "out"), "--no-compile"]
    assert main([*words, *(word for setting in settings for word in ("--set", setting))]) == 0
    kinds = {
        name: shape["kind"] for name, shape in Checkpoint(tmp_path / "out").config["model"]["experts"].items()
    }
    assert kinds["0-0"] == "restormer" and "retinexformer" in kinds.values()
    assert json.loads((tmp_path / "out" / "work" / "settings.json").read_text())["preset"] == "paper"
