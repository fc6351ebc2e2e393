"""Evaluation on a drawn data set with a model whose route and outputs are known."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.measure.curves import UNDEGRADED, curves, steps_curves
from training.measure.evaluate import KEY, TIE_DB, WORST, evaluate, evaluate_case, instruction_mask, markdown
from training.measure.protocol import cases, samples
from training.measure.tables import glance, results, uncertainty, worst
from unirestorer.experts import CPU, ExpertBank
from unirestorer.imaging import save_image
from unirestorer.metrics import psnr, ssim
from unirestorer.pipeline import UniRestorer
from unirestorer.tree import DegradationTree
from unirestorer.types import Estimate, Route, Task

PHOTOS = 6
TREE = DegradationTree(
    centers=(torch.tensor([[0.5, 0.5]]), torch.eye(2), torch.eye(2)),
    parents=(torch.zeros(1, dtype=torch.long), torch.zeros(2, dtype=torch.long), torch.arange(2)),
    task_sets=({frozenset({Task.DENOISE}): 9}, {frozenset({Task.LOWLIGHT}): 9}),
    names=(("all",), ("noise", "light"), ("noise, heavy", "light, low")),
)


class Model:
    """Sees noise as energy between neighbours; experts 1 and 3 blur, 2 and 4 brighten, ALL does nothing."""

    tree = TREE
    router = SimpleNamespace(standardised=lambda e: 2 * e)

    def __init__(self, wrong_leaf: bool = False, level: int = 2) -> None:
        self.wrong_leaf, self.level = wrong_leaf, level
        self.runs: list[int] = []
        self.looks = 0

    def estimate(self, x: Tensor) -> Estimate:
        self.looks += 1
        rough = float((x[..., 1:] - x[..., :-1]).abs().mean() > 0.05)
        e = torch.tensor([[rough, 1 - rough]])
        return Estimate(e, e, torch.full_like(e, -1.5))

    def route(self, estimate: Estimate, tasks: Sequence[Task] | None = None) -> Route:
        leaf_probs = estimate.e.flip(1) if self.wrong_leaf else estimate.e
        if tasks is not None:
            leaf_probs = torch.where(TREE.mask(tasks), leaf_probs + 1e-3, 0.0)
        leaf = leaf_probs.argmax(1)
        level = torch.full_like(leaf, self.level)
        return Route(leaf_probs, F.one_hot(level, 3).float(), leaf, level, TREE.expert_table[leaf, level])

    def experts(self, x: Tensor, expert: Tensor) -> Tensor:
        number = int(expert)
        self.runs.append(number)
        if number == 0:
            return x
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if number % 2 else x**0.5


def photo(seed: int) -> Tensor:
    coarse = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (40, 56), mode="bicubic", align_corners=True).clamp(0, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("val")
    for name in ("cbsd68", "sunhays"):
        (root / name).mkdir()
        for index in range(PHOTOS):
            save_image(photo(index), root / name / f"{index}.png")
    return root


def measure(model: Model, data: Path, *groups: str, **options: int | Path | dict) -> dict:
    return evaluate(model, data, groups=groups, **options)


def test_figures_agree_with_a_plain_loop(data: Path) -> None:
    figures = measure(Model(), data, "single-in/denoise-50")["cases"]["single-in/denoise-50"]
    case = cases("single-in/denoise-50")[0]
    blurred = [
        (s.clean, s.degraded, Model().experts(s.degraded, torch.tensor([3]))) for s in samples(case, data)
    ]
    for mode, of in (("input", 1), ("all", 1), ("auto", 2), ("instruction", 2), ("oracle", 2)):
        assert figures["psnr"][mode] == pytest.approx(
            sum(psnr(p[of], p[0])[0] for p in blurred) / PHOTOS, abs=1e-3
        )
        assert figures["ssim"][mode] == pytest.approx(
            sum(ssim(p[of], p[0])[0] for p in blurred) / PHOTOS, abs=1e-3
        )
    assert (figures["n"], figures["seed"], figures["strength"]) == (PHOTOS, case.seed, 50)
    assert figures["type_accuracy"] == figures["leaf_accuracy"] == figures["routing_accuracy"] == 1
    assert figures["regret_db"] == figures["over_finest_db"] == 0
    assert figures["path_psnr"] == [figures["psnr"][mode] for mode in ("all", "auto", "auto")]
    assert figures["practical_load"] == [0, 0, 1]
    assert figures["expected_load"] == [0, 0.5, 0.5]  # TYPE and DEGREE do the same: they tie
    assert figures["log_e_gran"] == -1.5
    assert figures["uncertainty"] == [[-1.5, pytest.approx(0.5**0.5, abs=1e-4)]] * PHOTOS  # u is 2 e here
    gains = sorted(psnr(after, clean)[0] - psnr(before, clean)[0] for clean, before, after in blurred)
    rows = figures["worst"]
    assert [row["auto"] - row["input"] for row in rows] == pytest.approx(gains[:WORST], abs=1e-3)
    assert len({row["photo"] for row in rows}) == len(rows)


def test_a_wrong_route_costs_regret_and_an_instruction_mends_it(data: Path) -> None:
    figures = measure(Model(wrong_leaf=True), data, "single-in/denoise-50")["cases"]["single-in/denoise-50"]
    assert figures["type_accuracy"] == figures["leaf_accuracy"] == figures["routing_accuracy"] == 0
    assert figures["psnr"]["instruction"] == figures["psnr"]["oracle"] > figures["psnr"]["auto"]
    assert figures["regret_db"] == pytest.approx(
        figures["psnr"]["oracle"] - figures["psnr"]["auto"], abs=1e-3
    )
    assert figures["regret_db"] > TIE_DB


def test_a_longer_trained_expert_stands_beside_all(data: Path) -> None:
    """Its column is there only where it was measured, and it takes no part in routing."""
    blur = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    blur.halo_px, blur.multiple = 1, 1
    longer = ExpertBank(("longer",), lambda _: blur, CPU)
    case = "single-in/denoise-50"
    with_it = measure(Model(level=0), data, case, limit=3, longer=longer)
    figures = with_it["cases"][case]
    auto = measure(Model(), data, case, limit=3)["cases"][case]["psnr"]["auto"]  # blurs, too
    assert figures["psnr"]["longer"] == pytest.approx(auto, abs=1e-3)
    assert figures["psnr"]["auto"] == figures["psnr"]["all"] == figures["psnr"]["input"]
    assert "| ALL | ALL, longer | auto |" in markdown(with_it)
    assert "longer" not in markdown(measure(Model(), data, case, limit=1))


def test_photos_in_black_and_white_are_measured_as_they_are_served(
    data: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come out exactly grey; they were scored with the experts' tints, up to 6.5 grey levels away."""
    call, outputs = ExpertBank.__call__, []

    def recorded(bank: ExpertBank, x: Tensor, expert: Tensor, **options: object) -> Tensor:
        outputs.append(call(bank, x, expert, **options))
        return outputs[-1]

    monkeypatch.setattr(ExpertBank, "__call__", recorded)
    model = UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")
    case = cases("grey/denoise-25")[0]
    figures = evaluate_case(model, case, samples(case, data, limit=2))
    assert outputs and all(torch.equal(output, output[:, :1].expand_as(output)) for output in outputs)
    served = [(model.restore(sample.degraded).image, sample.clean) for sample in samples(case, data, limit=2)]
    assert figures["psnr"]["auto"] == pytest.approx(sum(psnr(*pair)[0] for pair in served) / 2, abs=1e-3)


def test_choosing_all_is_counted_at_its_level(data: Path) -> None:
    figures = measure(Model(level=0), data, "single-in/denoise-50")["cases"]["single-in/denoise-50"]
    assert figures["practical_load"] == [1, 0, 0]
    assert figures["psnr"]["auto"] == figures["psnr"]["all"] == figures["psnr"]["input"]
    finest = figures["path_psnr"][-1]
    assert figures["over_finest_db"] == pytest.approx(figures["psnr"]["auto"] - finest, abs=1e-3) != 0


def test_every_expert_runs_once_per_photo_one_expert_after_another(data: Path) -> None:
    model = Model(wrong_leaf=True)
    measure(model, data, "single-in/denoise-50")
    assert model.looks == PHOTOS
    assert model.runs == [
        e for e in (0, 1, 3, 4) for _ in range(PHOTOS)
    ]  # 0, path of leaf 0, and the wrong leaf


def test_undegraded_and_unseen_photos_have_no_instruction(data: Path) -> None:
    figures = measure(Model(level=0), data, "clean/cbsd68", "unseen/banding-6", limit=2)["cases"]
    clean, banding = figures["clean/cbsd68"], figures["unseen/banding-6"]
    assert (
        clean["psnr"]["instruction"]
        is clean["psnr"]["oracle"]
        is clean["regret_db"]
        is clean["path_psnr"]
        is clean["expected_load"]
        is None
    )
    assert clean["psnr"]["auto"] == 100
    assert banding["psnr"]["instruction"] is None and banding["psnr"]["oracle"] is not None
    assert banding["type_accuracy"] is None


def test_a_task_that_the_tree_does_not_know_is_measured_without_instruction(data: Path) -> None:
    assert instruction_mask(TREE, (Task.DERAIN,)) is None
    assert instruction_mask(TREE, (Task.DENOISE,)).tolist() == [True, False]
    figures = measure(Model(), data, "single-in/dejpeg-10", limit=2)["cases"]["single-in/dejpeg-10"]
    assert figures["psnr"]["instruction"] is None


def test_metrics_are_merged_and_stale_ones_dropped(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    out.write_text('{"overhead": {"seconds": 1}}')
    options = {"out": out, "limit": 1, "about": {"weights": "a"}}
    first = measure(Model(), data, "single-in/denoise-50", **options)
    second = measure(Model(), data, "single-in/denoise-15", "second-in/dehaze-1", **options)
    stored = json.loads(out.read_text())
    assert stored["overhead"] == {"seconds": 1}
    assert list(stored[KEY]["cases"]) == [
        "single-in/denoise-15",
        "single-in/denoise-50",
    ]  # the protocol's order
    assert stored[KEY]["cases"]["single-in/denoise-50"] == first["cases"]["single-in/denoise-50"]
    assert "reference" in second["skipped"]["second-in/dehaze-1"]
    run = stored[KEY]["runs"][stored[KEY]["cases"]["single-in/denoise-15"]["run"]]
    assert run["limit"] == 1 and run["torch"] == torch.__version__ and run["device"].startswith("cpu: ")
    measure(Model(), data, "clean/cbsd68", out=out, limit=1, about={"weights": "b"})
    assert list(json.loads(out.read_text())[KEY]["cases"]) == ["clean/cbsd68"]


def test_the_meaning_of_e_gran_is_told_per_task() -> None:
    """Rises with the error and beyond the trained range for noise, says nothing for haze."""
    pairs = {"single-in": [[-2.0, 0.1], [-1.0, 0.2]], "single-out": [[0.0, 0.3], [1.0, 0.4]]}
    measured = {
        case.id: {"uncertainty": pairs[case.group] if case.name == "denoise" else [[0.0, 0.1], [0.0, 0.2]]}
        for case in cases("single-in", "single-out")
        if case.name in ("denoise", "dehaze")
    }
    rows = {line.split("|")[1].strip(): line for line in uncertainty(measured)[2:] if line.startswith("|")}
    assert set(rows) == {"task", "---", "denoise", "dehaze", "all"}
    cells = {task: [cell.strip() for cell in row.split("|")[2:-1]] for task, row in rows.items()}
    assert cells["denoise"] == ["12", "1.00", "1.00", "1.00", "-1.50", "0.50"]
    assert cells["dehaze"] == ["12", "", "0.50", "0.50", "0.00", "0.00"]  # constant: no correlation
    assert uncertainty({}) == []


def test_curves_show_every_task_from_the_mildest_strength_to_the_strongest() -> None:
    measured = {
        case.id: {
            "strength": case.strength,
            "psnr": {"input": 20.0, "auto": 21.0 + (case.group == "single-out")},
            "path_psnr": [18.0, 22.0, 23.0],
            "practical_load": [0.0, 0.75, 0.25],
            "log_e_gran": -1.0,
            "uncertainty": [[-3.0, 0.1], [-1.0, 0.2]],
        }
        for case in cases("single-mild", "single-in", "single-out", UNDEGRADED)
    }
    lines = curves(measured).data
    stars = [line for line in lines if line.mode == "markers"]
    assert len(stars) == len(Task) and all(line.y == (1, 1, 1, 1, 1, 2, 2, 2) for line in stars)
    assert stars[0].x == ("5", "15", "40", "80", "120", "160", "180", "200")
    assert [line.y[0] for line in lines[:3]] == [-2, 2, 3]  # ALL, TYPE and DEGREE over the input
    assert {line.y[0] for line in lines[4:8]} == {25, -1, -3, -2}  # load; e_gran's most, least and mean
    del measured["single-mild/derain-5"]
    with pytest.raises(ValueError, match="single-mild/derain-5"):
        curves(measured)


def test_tables_name_every_case_and_average_only_what_is_whole(data: Path) -> None:
    result = measure(Model(), data, "single-in", "mixed-in", "clean", "second-in/dehaze-1", limit=1)
    text = markdown(result)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert sum(line.startswith("| denoise-50 |") for line in rows) == 2  # quality and routing
    assert all(len(line.split("|")) == len(rows[0].split("|")) for line in rows[: 2 + 21 + 3])
    for name in ("average of 3", "average of 5", "average of 7"):
        assert sum(name in line for line in rows) == 1
    assert "skipped second-in/dehaze-1" in text
    measured = result["cases"]
    tasks = ("derain", "dehaze", "denoise")
    ids = [[id_ for id_ in measured if id_.startswith(f"single-in/{task}-")] for task in tasks]
    mean = sum(sum(measured[i]["psnr"]["auto"] for i in three) / 3 for three in ids) / 3
    (row,) = (line for line in rows if "average of 3" in line)
    assert f"{mean:.2f} / " in row.split("|")[5]
    assert "average" not in markdown(result, ["clean/cbsd68"])
    assert "| average |" in markdown(result, ["single-in/denoise-15", "single-in/denoise-25"])


def test_experts_for_clusters_are_drawn_beside_an_expert_for_everything_of_as_many_steps() -> None:
    measured = {
        case.id: {"psnr": {"longer": 22.5, "auto": 22.75, "oracle": 24.0}, "path_psnr": [22.0, 22.25, 23.0]}
        for case in cases("mixed-in", "mixed-out")
    }
    lines = steps_curves(measured, {"0-0": {"steps": 10}, "1-0": {"steps": 20}, "2-0": {"steps": 30}}).data
    assert [(line.x, line.y) for line in lines[:4]] == [
        ((10, 30, 60), (22, 22.25, 23)),
        ((10, 60), (22, 22.5)),
        ((60,), (22.75,)),
        ((60,), (24,)),
    ]


def test_results_begin_with_averages_and_fold_the_rest(data: Path) -> None:
    measured = measure(Model(), data, "single-in", "clean", limit=1)
    overview, _, rest = results({KEY: measured}).partition("<details>")
    assert overview.rstrip() == glance({KEY: measured}).rstrip()
    auto = {case.id: measured["cases"][case.id]["psnr"]["auto"] for case in cases("single-in", "clean")}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in overview.splitlines() if "|" in line]
    mean = sum(auto[case.id] for case in cases("single-in")) / 21
    assert rows[2][:2] == ["One degradation, strengths that were trained, average of 7", "21"]
    assert rows[2][5].startswith(f"{mean:.2f} / ")
    assert [row[0].partition(": ")[2] for row in rows[3:5]] == ["cbsd68", "sunhays"]
    assert rows[3][5].startswith(f"{auto['clean/cbsd68']:.2f} / ")
    assert rest.count("<details>") + 1 == rest.count("</details>") == 3  # two groups and the routing
    assert "<summary>Where auto mode sent them</summary>" in rest
    assert results({}) == glance({}) == ""


@pytest.mark.parametrize(("groups", "what"), [(["sideways"], "sideways"), (["real/sice"], "sice")])
def test_bad_input_is_named(data: Path, groups: Sequence[str], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        measure(Model(), data, *groups)


def test_damaged_metrics_are_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json"):
        measure(Model(), data, "clean", out=tmp_path / "metrics.json")


def test_the_worst_of_all_real_photos_are_named() -> None:
    def rows(*gains: float) -> dict[str, list[dict[str, object]]]:
        photos = [{"photo": f"{g}.png", "input": 30.0, "auto": 30 + g, "expert": "rain"} for g in gains]
        return {"worst": photos}

    measured = {"real/rain100l": rows(-1, 2, 3), "real/polyu": rows(-9, -8, 0.5), "clean/cbsd68": rows(-50)}
    assert [line.split(" | ")[1] for line in worst(measured)[4:-1]] == [
        "-9.png",
        "-8.png",
        "-1.png",
        "0.5.png",
        "2.png",
    ]
    assert worst({}) == worst({"real/sice": {}}) == []
