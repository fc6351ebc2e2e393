"""Jobs without a server: faults of the checkpoint and the disk, the log, and a GPU that is lent."""

import ctypes
import errno
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from gradio_client.exceptions import AppError
from PIL import Image

from unirestorer import UniRestorer
from unirestorer.demo import handlers as handlers_module
from unirestorer.demo.handlers import Handlers, View
from unirestorer.demo.hosting import jobs
from unirestorer.demo.hosting.host import Limits, give_back_memory, lent_gpu
from unirestorer.demo.hosting.jobs import Watch


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def watch(log: io.StringIO) -> Watch:
    return Watch(Limits(), log)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


@pytest.fixture
def handlers(folder: Path, watch: Watch, tmp_path: Path) -> Handlers:
    model = UniRestorer.from_pretrained(folder, device="cpu")
    model.experts.guard = jobs.guard
    return Handlers(model, tmp_path / "cache")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "secret.png")
    return str(tmp_path / "secret.png")


def entries(log: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def page_job(watch: Watch, handlers: Handlers) -> Callable[..., Iterator[View]]:
    """The page's main event, as far as errors go."""

    def run(photo: str, expert: str) -> Iterator[View]:
        for view in handlers.views(photo, [], expert, None):
            if view.error is not None:
                jobs.sorry(view.error)
            yield view

    return watch.job(run)


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [missing, truncated, flipped])
def test_a_file_that_is_damaged_while_serving(
    damage: Callable[[Path], None],
    folder: Path,
    handlers: Handlers,
    watch: Watch,
    photo: str,
    log: io.StringIO,
) -> None:
    run = page_job(watch, handlers)
    (auto,) = run(photo, "")
    assert auto.memory is not None
    chosen = auto.memory.auto.report["expert"]
    forced = next(name for name in ("1-3", "2-5") if name != chosen)
    damage(folder / f"experts/{forced}.safetensors")
    *_, view = run(photo, forced)
    sentence = jobs.sorry(view.error)
    assert (
        sentence.startswith("This expert cannot be loaded on the server just now")
        and str(folder) not in sentence
    )
    entry = entries(log)[-1]
    assert entry["error"] == "PartError" and f"experts/{forced}.safetensors" in entry["detail"][0]
    assert "secret" not in log.getvalue()
    *_, again = run(photo, "0-0")
    assert again.error is None, "the other experts work on"


def test_a_disk_that_fills_up_is_a_sentence(
    handlers: Handlers, watch: Watch, photo: str, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*unused: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "secret.png")

    run = page_job(watch, handlers)
    with monkeypatch.context() as patch:
        patch.setattr(handlers_module, "save_bytes_to_cache", full)
        (view,) = run(photo, "")
    assert jobs.sorry(view.error) == "The server cannot store the result just now: try again later."
    assert entries(log)[-1]["error"] == "ValueError" and "secret" not in log.getvalue()
    (view,) = run(photo, "")
    assert view.error is None


def test_the_watched_model_is_the_same_model(folder: Path, handlers: Handlers, photo: str) -> None:
    plain = UniRestorer.from_pretrained(folder, device="cpu").restore(photo, expert="1-2")
    watched = handlers.model.restore(photo, expert="1-2")
    assert (plain.image == watched.image).all()
    with pytest.raises(ValueError, match="unknown expert number 99: this model has experts 0 to 26"):
        handlers.model.experts.network(99)


def test_a_visitor_who_leaves_between_two_results_is_logged(watch: Watch, log: io.StringIO) -> None:
    def two() -> Iterator[int]:
        yield 1
        yield 2

    results = watch.job(two)()
    assert next(results) == 1
    results.close()
    assert [entry["error"] for entry in entries(log)] == ["StoppedError"]
    assert list(watch.job(two)()) == [1, 2]
    assert "error" not in entries(log)[-1]


def test_a_mistake_of_a_visitor_is_told_in_its_own_words(watch: Watch, log: io.StringIO) -> None:
    def wrong() -> None:
        raise ValueError("unknown <b>task</b>")

    with pytest.raises(AppError, match="Unknown &lt;b&gt;task"):
        watch.job(wrong)()
    (entry,) = entries(log)
    assert entry["error"] == "ValueError" and "detail" not in entry


def test_a_log_that_cannot_be_written_stops_no_job(watch: Watch, log: io.StringIO) -> None:
    log.close()
    assert watch.job(lambda: 5)() == 5


def test_only_good_jobs_make_the_expected_wait(watch: Watch) -> None:
    def bad() -> None:
        raise KeyError("x")

    with pytest.raises(AppError, match="not your mistake"):
        watch.job(bad)()
    assert not watch._durations
    watch.job(lambda: None)()
    assert len(watch._durations) == 1


def test_a_lent_gpu_is_asked_for_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int:
        return 7

    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    monkeypatch.setitem(sys.modules, "spaces", None)  # importing it would fail
    assert lent_gpu(300)(work) is work
    asked: list[float] = []
    spaces = ModuleType("spaces")
    spaces.GPU = lambda duration: asked.append(duration) or (lambda function: lambda: 10 * function())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert lent_gpu(300)(work)() == 70 and asked == [120]


# Memory


def resident_mb() -> float:
    resident = re.search(r"^VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert resident
    return int(resident[1]) / 1000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps nothing back")
def test_freed_memory_is_given_back() -> None:
    pieces = [torch.ones(25_000) for _ in range(3000)]  # 300 MB, each too small for a mapping of its own
    pins = pieces[::50]  # the heap cannot simply end sooner
    del pieces
    before = resident_mb()
    give_back_memory()
    assert before - resident_mb() > 200
    assert all(pin[0] == 1 for pin in pins)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    give_back_memory()


def test_every_job_gives_its_memory_back(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(jobs, "give_back_memory", lambda: given.append("back"))
    watch.job(lambda: 1)()
    assert given == ["back"]

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(AppError):
        watch.job(fails)()
    assert given == ["back"] * 2
