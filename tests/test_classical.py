"""The classical methods do what they are for, and the comparison is printed as measured."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from training.__main__ import main
from training.build.draw import draw_photo
from training.measure.classical import METHODS, classical, markdown, noise_level
from training.measure.protocol import cases
from unirestorer.imaging import save_image
from unirestorer.metrics import psnr
from unirestorer.types import Task


def photo(seed: int = 0) -> torch.Tensor:
    pixels = np.asarray(draw_photo(seed, (96, 80)), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


@pytest.mark.parametrize("task", list(Task))
def test_every_method_keeps_shape_and_range(task: Task) -> None:
    for x in (photo(), torch.zeros(1, 3, 40, 33), torch.ones(1, 3, 33, 40)):
        restored = classical(METHODS[task][1], x)
        assert restored.shape == x.shape and restored.min() >= 0 and restored.max() <= 1


def test_every_method_sees_the_whole_photo() -> None:
    """A photo of two halves comes out with two halves: each method returns every pixel of it."""
    x = torch.full((1, 3, 48, 40), 0.3)
    x[..., 20:] = 0.7
    for task, (name, method) in METHODS.items():
        restored = classical(method, x)
        assert (restored[..., 24:].mean((1, 2, 3)) > restored[..., :16].mean((1, 2, 3)) + 0.2).all(), name
        again = classical(method, x)
        assert torch.equal(restored, again), f"{task}: another result for the same photo"
        for half in (restored[..., :16], restored[..., 24:]):
            assert half.std() < 0.1, f"{name}: {half.std()}"


@pytest.mark.parametrize("sigma", [5, 15, 30])
def test_noise_is_estimated_and_reduced(sigma: int) -> None:
    clean = torch.full((1, 3, 64, 64), 0.5)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * sigma / 255
    assert noise_level((clean + noise)[0].permute(1, 2, 0).numpy()) == pytest.approx(sigma / 255, rel=0.05)
    noisy = (photo() + noise[..., :80].repeat(1, 1, 2, 2)[..., :80, :96]).clamp(0, 1)
    assert psnr(classical(METHODS[Task.DENOISE][1], noisy), photo())[0] > psnr(noisy, photo())[0] + 0.5


def test_the_comparison_is_stored_and_printed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    (tmp_path / "val" / "cbsd68").mkdir(parents=True)
    for index in range(2):
        save_image(photo(index), tmp_path / "val" / "cbsd68" / f"{index}.png")
    words = ["classical", "--checkpoint", str(folder), "--data", str(tmp_path / "val"), "--limit", "1"]
    assert main([*words, "--device", "cpu"]) == 0
    measured = json.loads((folder / "metrics.json").read_text())["classical"]
    rows = {row["case"]: row for row in measured["rows"]}
    assert set(rows) == {case.id for case in cases("single-in")}
    assert (
        rows["single-in/denoise-50"]["psnr"]["classical"] > rows["single-in/denoise-50"]["psnr"]["input"] + 2
    )
    assert measured["about"]["limit"] == 1
    table = markdown(measured)
    assert (
        len(table) == 2 + 2 + len(rows) + 1 and "non-local means" in "".join(table) and markdown(None) == []
    )


def test_missing_photos_are_one_sentence(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classical", "--checkpoint", str(tiny_checkpoint), "--data", str(tmp_path / "none")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "training:" in line]
    assert "none" in line
