"""Costs, on tiny sizes: what is measured is there, is of its kind, and reaches the command line."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from training.__main__ import main
from training.measure import costs
from training.measure.costs import (
    STAGES,
    Case,
    CountingCheckpoint,
    Meter,
    aligned,
    as_text,
    draw_noisy,
    grow,
    growth,
    measure_case,
    measure_experts,
)
from unirestorer.checkpoint import Checkpoint, verify

CPU = torch.device("cpu")


def test_the_meter_sees_what_a_stage_took() -> None:
    meter = Meter(CPU)
    with meter.stage("large"):
        torch.ones(50_000_000).sum()  # 200 MB
    with meter.stage("small"):
        pass
    large, small = meter.stages["large"], meter.stages["small"]
    assert large["seconds"] > small["seconds"] >= 0
    assert large["gpu_peak_mb"] is None
    if large["peak_mb"] is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 150 < large["peak_mb"] < 400
    assert small["peak_mb"] < 100


@pytest.mark.parametrize("batch", [1, 2])
def test_a_case_has_every_stage_cold_and_warm(batch: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    draw_noisy(photo, 60, 40)
    with Image.open(photo) as image:
        assert (image.size, image.format) == ((60, 40), "JPEG")
    found = measure_case(Case(tiny_checkpoint, "cpu", photo, batch, 64, 2))
    assert tuple(found["cold"]) == STAGES
    assert tuple(found["warm"]) == STAGES[2:]  # libraries are there, the checkpoint is open
    assert all(stage["seconds"] > 0 for state in ("cold", "warm") for stage in found[state].values())
    assert ("auto" in found) == (batch == 1)  # beside one photo's expert
    if batch == 1:
        auto = found["auto"]
        assert auto["auto_seconds"] > 0 < auto["expert_seconds"]
        assert auto["ratio"] > 0


def test_more_experts_of_the_same_kind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint)
    grow(source, tmp_path / "60", 60)
    tree = Checkpoint(tmp_path / "60").tree()
    assert [len(centers) for centers in tree.centers] == [1, 16, 43]
    assert len(tree.expert_names) == 60
    assert set(tree.expert_table[:, 1].tolist()) == set(range(1, 17))  # every node is on some leaf's path
    assert len(verify(tmp_path / "60")) == 60 + 3
    checkpoint = CountingCheckpoint(tmp_path / "60")
    checkpoint.expert("2-42")
    assert checkpoint.bytes_read == (tmp_path / "60/experts/2-42.safetensors").stat().st_size
    with pytest.raises(ValueError, match="2 experts: expected at least 3"):
        grow(source, tmp_path / "2", 2)


def test_a_photo_reads_one_expert_however_many_there_are(tiny_checkpoint: Path) -> None:
    few, many = measure_experts(tiny_checkpoint, "cpu", (27, 60), None, 1)
    assert (few["experts"], many["experts"]) == (27, 60)
    assert few["mb_read"] == many["mb_read"] > 0
    assert few["ratio"] == 1
    assert few["seconds"] > 0 < many["seconds"]
    # One expert and the extractor in both; the leaf router grows by 24 leaves of 512 weights, twice.
    assert many["mb_resident"] - few["mb_resident"] == pytest.approx(24 * 513 * 2 * 4 / 1e6, rel=0.05)


def test_growth_compares_single_warm_photos() -> None:
    def row(side: int, batch: int, seconds: float, peak: float | None) -> dict:
        stages = {"expert": {"seconds": seconds, "peak_mb": peak, "gpu_peak_mb": None}}
        return {"width": side, "height": side, "batch": batch, "cold": stages, "warm": stages}

    broken = {"width": 9999, "height": 9999, "batch": 1, "error": "no memory"}
    rows = [row(200, 1, 9.0, 30.0), row(100, 1, 2.0, 20.0), row(400, 16, 1.0, 1.0), broken]
    assert growth(rows) == {"megapixels": 4.0, "seconds": 4.5, "peak_mb": 1.5}
    assert growth([row(200, 1, 9.0, None), row(100, 1, 2.0, None)]) == {"megapixels": 4.0, "seconds": 4.5}
    assert growth(rows[1:]) is None


def test_tables_are_aligned() -> None:
    assert aligned([["size", "s"], ["1x1", "10.5"]]) == "size     s\n1x1   10.5"


def words(*more: object, checkpoint: Path) -> list[str]:
    return ["costs", "--checkpoint", str(checkpoint), "--device", "cpu", *map(str, more)]


def test_costs_from_the_command_line(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, out = tmp_path / "metrics.json", tmp_path / "new/costs.json"
    options = ["--sizes", "48", "64x32", "--batch", 1, "--repeats", 1, "--experts"]
    options += ["--json", out, "--out", metrics]
    assert main(words(*options, checkpoint=tiny_checkpoint)) == 0
    text, err = capsys.readouterr()
    assert err == ""  # a progress bar needs a terminal
    measured = json.loads(out.read_text())
    assert as_text(measured) == text.rstrip("\n")
    assert [(row["width"], row["height"]) for row in measured["rows"]] == [(48, 48), (64, 32)]
    assert measured["rows"][0]["cold"]["open"]["seconds"] > 0
    assert measured["growth"]["megapixels"] == pytest.approx(48 * 48 / (64 * 32))
    assert measured["machine"]["device"].startswith("cpu: ")
    assert measured["experts"] == []
    for shown in ("Seconds per stage", "Peak memory per stage", "expert alone", "64x32", *STAGES):
        assert shown in text
    stored = json.loads(metrics.read_text())["overhead"]
    assert stored["rows"] == measured["parts"]
    assert stored["about"] == {**measured["machine"], "side_px": 512}
    assert "heads and routers" in text
    assert not (tiny_checkpoint / "metrics.json").exists()


def test_a_case_that_fails_is_a_row(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(work: object, case: Case) -> dict:
        raise RuntimeError("CUDA out of memory.\nTried to allocate much")

    monkeypatch.setattr(costs, "_in_new_process", full)
    options = ["--sizes", 32, "--batch", 4, "--experts", "--out", tmp_path / "metrics.json"]
    with pytest.raises(SystemExit) as ended:
        main(words(*options, checkpoint=tiny_checkpoint))
    assert ended.value.code == 1
    assert "32x32 batch 4: CUDA out of memory. Tried to allocate much" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ("--sizes 0", "'0'"),
        ("--sizes 10x", "'10x'"),
        ("--sizes 1x2x3", "1 to 10000"),
        ("--sizes 10001", "'10001'"),
        ("--batch 0", "from 1 to 1024"),
        ("--repeats many", "'many'"),
        ("--experts 1", "from 2 to 10000"),
        ("--tile 3", "--tile"),
        ("--json .", "is a folder: name a file"),
        ("--checkpoint missing", "no checkpoint 'missing'"),
    ],
)
def test_bad_options_are_refused(
    options: str, fragment: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words(*options.split(), checkpoint=tiny_checkpoint))
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert fragment in err.splitlines()[-1]
