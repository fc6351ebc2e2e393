"""Checkpoints of the earlier format: refused in one sentence that says what converts them, and converted."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from training.__main__ import main
from training.config import NETWORKS, RoutersConfig
from training.measure.evaluate import identity_of
from unirestorer.checkpoint import Checkpoint, verify
from unirestorer.cli import main as use

Data = dict[str, Any]
OF_OTHER_KINDS = {"heads": [1, 2, 4, 8], "refinement": 0, "stages": 1}


@pytest.fixture
def earlier(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint as the earlier format had it: shapes and training settings side by side."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "earlier"))
    config = json.loads((folder / "config.json").read_text())
    model = config.pop("model")
    del model["ranges"]
    routers = asdict(RoutersConfig(dropout=0.2))
    del routers["shape"]
    config |= {
        "format": "unirestorer/1",
        "preset": "small",
        "setting": model.pop("mode"),
        "extractor": {**model["extractor"], "pretrained": "", "steps": 5, "minutes": 1.5},
        "tree": model["tree"],
        "experts": {name: {**shape, **OF_OTHER_KINDS} for name, shape in model["experts"].items()},
        "routers": {**model["routers"], **routers},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change(folder: Path, **sections: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))


def test_the_earlier_format_is_one_sentence_that_says_what_converts_it(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert use(["verify", str(earlier)]) == 2
    assert capsys.readouterr().err == (
        f"unirestorer: {earlier}/config.json: expected format 'unirestorer/2', got 'unirestorer/1': "
        f"run `python -m training migrate {earlier}`\n"
    )


def test_a_checkpoint_is_converted(earlier: Path, tiny_checkpoint: Path) -> None:
    """The same model as before, weights untouched, and what it was trained with on record."""
    before = {path: path.read_bytes() for path in earlier.rglob("*.*") if path.name != "config.json"}
    assert main(["migrate", str(earlier)]) == 0
    assert {path: path.read_bytes() for path in earlier.rglob("*.*") if path.name != "config.json"} == before
    now, source = Checkpoint(earlier), Checkpoint(tiny_checkpoint)
    assert now.config["model"] == source.config["model"] and now.config["files"] == source.config["files"]
    assert identity_of(now)["weights"] == identity_of(source)["weights"]
    training = now.config["training"]
    assert training["extractor"]["settings"] == {"pretrained": "", "steps": 5, "minutes": 1.5}
    assert training["routers"]["settings"]["dropout"] == 0.2
    assert training["experts"] == source.config["training"]["experts"]
    assert verify(earlier) == verify(tiny_checkpoint)
    assert main(["migrate", str(earlier)]) == 2, "it is converted already"


def test_an_unfinished_checkpoint_is_converted(earlier: Path) -> None:
    config = json.loads((earlier / "config.json").read_text())
    unfinished = {key: config[key] for key in ("format", "setting", "files", "extractor")}
    (earlier / "config.json").write_text(json.dumps(unfinished))
    assert main(["migrate", str(earlier)]) == 0
    assert set(Checkpoint(earlier).config["model"]) == {"mode", "ranges", "extractor"}


STAGES = {**asdict(NETWORKS["retinexformer"]), "window_px": 96, "unshuffle": 1, "refinement": 0, "stages": 2}
FAULTS: dict[str, tuple[Data, str]] = {
    "no mode": ({"setting": "both"}, "setting: unknown 'both': choose one of single, mixed"),
    "no object": ({"experts": 3}, "is damaged"),
    "no kind": ({"experts": {"0-0": {}}}, "is damaged: KeyError('kind')"),
    "no width": ({"experts": {"0-0": {"kind": "nafnet"}}}, "experts.0-0: the key 'width' is missing"),
    "stages": ({"experts": {"0-0": STAGES}}, "a retinexformer of 2 stages is no longer known"),
    "another format": ({"format": "unirestorer/9"}, "expected format 'unirestorer/1', got 'unirestorer/9'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_converted_is_said_and_left_alone(
    earlier: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sections, message = FAULTS[fault]
    change(earlier, **sections)
    before = (earlier / "config.json").read_bytes()
    assert main(["migrate", str(earlier)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (earlier / "config.json").read_bytes() == before
