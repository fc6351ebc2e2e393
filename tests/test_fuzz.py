"""A short run of the fuzz script, and that it finds what it looks for."""

import time
from pathlib import Path

import numpy as np
import pytest

from tests import fuzz

ENOUGH = 3600.0  # seconds; pytest's own limit comes first


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files() -> None:
    findings = fuzz.fuzz_files(150, 0, time.monotonic() + ENOUGH)
    assert findings.texts == []
    assert findings.ends["read"] > 10 and findings.ends["refused"] > 10


def test_wrong_calls() -> None:
    findings = fuzz.fuzz_calls(40, 0, time.monotonic() + ENOUGH)
    assert findings.texts == []
    assert sum(findings.ends.values()) == 40


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (KeyError("x"), "KeyError"),
        (ValueError("two\nlines"), "it holds"),
        (ValueError("x" * 900), "900 char"),
    ],
)
def test_a_reader_that_fails_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def broken(path: Path) -> None:
        raise raised

    monkeypatch.setattr(fuzz, "load_image", broken)
    assert said in fuzz.try_file("photo.png", b"", tmp_path)[1]


def test_a_reader_that_leaves_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(path: Path) -> None:
        path.with_name("left.tmp").touch()
        raise ValueError("no readable image")

    monkeypatch.setattr(fuzz, "load_image", careless)
    assert "it left ['left.tmp']" in fuzz.try_file("photo.png", b"", tmp_path)[1]


def test_a_run_can_be_repeated() -> None:
    whole = fuzz.whole_files(np.random.default_rng(3))
    made = [fuzz.mutated(np.random.default_rng((3, 7)), whole) for _ in range(2)]
    assert made[0] == made[1] != fuzz.mutated(np.random.default_rng((3, 8)), whole)


@pytest.mark.parametrize(
    "told", ["", "Traceback (most recent call last)", "see /x/site-packages/y", "<script>"]
)
def test_a_bad_sentence_is_found(told: str) -> None:
    assert fuzz.complaint(told)
    assert not fuzz.complaint("This photo cannot be used: got nothing.")
