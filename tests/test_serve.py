"""Many visitors, faults and the stop: a page in this process whose experts wait until they are let go."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from helpers import SHAPE
from PIL import Image

from unirestorer import UniRestorer, __version__
from unirestorer.demo.hosting import host
from unirestorer.demo.hosting.host import Limits, read_limits
from unirestorer.demo.hosting.jobs import MODEL_QUEUE, Watch, guard
from unirestorer.demo.hosting.serve import Desk
from unirestorer.demo.page import build_page, launch_options
from unirestorer.demo.view import notices
from unirestorer.experts import ExpertBank
from unirestorer.networks import build_network

ROOT = Path(__file__).parent.parent
LIMITS = Limits(jobs=3, visitor_jobs=2, address_jobs=5, seconds=100, stop_seconds=20, upload_megabytes=1)
PATIENCE = 240  # seconds until a test gives up; never decides what is right


class Slow:
    """Experts that wait at every tile until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Event()
        self.tiles = 0
        self.failure: BaseException | None = None

    def bank(self, model: UniRestorer) -> ExpertBank:
        return ExpertBank(model.tree.expert_names, lambda number: self.network(), model.device)

    def network(self) -> Any:
        network = build_network(SHAPE)
        network.register_forward_pre_hook(self._wait)
        return network

    def _wait(self, *unused: object) -> None:
        self.tiles += 1
        self.entered.set()
        assert self.go.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure

    def reset(self) -> None:
        self.go.clear()
        self.entered.clear()
        self.tiles, self.failure = 0, None


class Server:
    """A page on a port of its own."""

    def __init__(self, model: UniRestorer, limits: Limits, folder: Path) -> None:
        self.slow = Slow()
        bank = self.slow.bank(model)
        bank.guard = guard
        patched = copy(model)
        patched.experts, patched.folder, patched.name = bank, Path("tiny"), "tiny"
        self.log = io.StringIO()
        self.test = 0  # sessions of two tests are never the same
        watch = Watch(limits, self.log)
        self.page = build_page([patched], watch)
        self.desk = Desk(self.page, watch, "tiny", folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        _, self.url, _ = self.page.launch(
            **launch_options(), **self.desk.options(), server_port=port, prevent_thread_lock=True, quiet=True
        )
        self.url = self.url.rstrip("/")
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def upload(self, data: bytes, name: str = "photo.png") -> dict[str, Any]:
        (path,) = (
            self.http.post("/gradio_api/upload", files={"files": (name, data)}).raise_for_status().json()
        )
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def run_number(self) -> int:
        """The event behind the Restore tab."""
        (stop,) = (fn for fn in self.page.fns.values() if fn.cancels)
        return stop.cancels[0]

    def number(self, name: str) -> int:
        if name == "the tab":
            return self.run_number()
        return next(fn._id for fn in self.page.fns.values() if fn.api_name == name)

    def join(self, session: str, photo: Any, name: str = "restore", *rest: Any) -> httpx.Response:
        body = {
            "data": [photo, *(rest or ([], ""))],
            "fn_index": self.number(name),
            "session_hash": f"{self.test}{session}",
        }
        return self.http.post("/gradio_api/queue/join", json=body)

    def cancel(self, session: str, event: str, name: str = "restore") -> None:
        body = {"session_hash": f"{self.test}{session}", "fn_index": self.number(name), "event_id": event}
        self.http.post("/gradio_api/cancel", json=body).raise_for_status()

    def outcome(self, session: str) -> dict[str, Any]:
        """The next end of a job of a session."""
        with self.http.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": f"{self.test}{session}"}
        ) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "process_completed":
                        return message
        raise AssertionError("the stream ended without a result")

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "the server never came to that state"
            time.sleep(0.02)


def png(width: int = 48, height: int = 32, seed: int = 0) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> UniRestorer:
    return UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def running(model: UniRestorer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("visitors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        server = Server(model, LIMITS, folder)
        yield server
        server.slow.go.set()
        server.page.close(verbose=False)


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    running.slow.reset()
    running.log.seek(0)
    running.log.truncate()
    running.test += 1
    yield running
    running.slow.go.set()
    running.until(lambda: running.desk.jobs() == ([], []))


# The queue


def test_health_is_told_while_the_model_works(server: Server) -> None:
    photo = server.upload(png())
    assert server.http.get("/healthz").json() == {
        **{"status": "ok", "checkpoint": "tiny", "version": __version__, "waiting": 0, "running": 0}
    }
    server.join("a", photo).raise_for_status()
    assert server.slow.entered.wait(PATIENCE)
    server.join("b", photo).raise_for_status()
    answer = server.http.get("/healthz")
    assert answer.status_code == 200
    assert (answer.json()["running"], answer.json()["waiting"]) == (1, 1)
    server.slow.go.set()
    assert server.outcome("a")["success"] and server.outcome("b")["success"]


def test_a_full_queue_is_told_with_the_wait(server: Server) -> None:
    photo = server.upload(png())
    for session in "abcd":  # one runs, three wait
        server.join(session, photo).raise_for_status()
        assert server.slow.entered.wait(PATIENCE)
    refused = server.outcome("e") if server.join("e", photo).raise_for_status() else {}
    assert refused["success"] is False
    assert refused["output"]["error"].startswith(
        "3 jobs are waiting, and there is room for no more: try again in "
    )
    answer = server.http.post("/gradio_api/call/restore", json={"data": [photo, [], ""]})
    assert answer.status_code == 503 and "try again in" in answer.json()["detail"]
    server.slow.go.set()
    assert all(server.outcome(session)["success"] for session in "abcd"), "those who waited lose nothing"
    assert [entry["waiting"] for entry in server.entries() if entry["event"] == "refused"] == [3, 3]


def test_a_visitor_may_not_fill_the_queue(server: Server) -> None:
    photo = server.upload(png())
    server.join("a", photo)
    assert server.slow.entered.wait(PATIENCE)
    server.join("a", photo)
    server.join("a", photo)
    refused = server.outcome("a")
    assert refused["success"] is False and refused["output"]["error"].startswith("2 jobs of yours")
    assert server.join("b", photo).status_code == 200, "another visitor may"
    assert [ticket.session[-1] for ticket in server.desk.jobs()[0]] == ["b"], "the first one has left"
    server.slow.go.set()
    assert server.outcome("b")["success"]


def test_an_address_may_not_fill_the_queue(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.desk, "limits", Limits(jobs=30, visitor_jobs=9, address_jobs=2))
    photo = server.upload(png())
    server.join("a", photo)
    server.join("b", photo)
    server.join("c", photo)
    assert server.outcome("c")["output"]["error"].startswith("2 jobs of your network")
    server.slow.go.set()
    assert server.outcome("a")["success"] and server.outcome("b")["success"]


def test_the_expected_wait_follows_the_last_jobs() -> None:
    watch = Watch(Limits())
    watch._durations.extend([10.0, 30.0])
    assert watch.expected_wait(3) == 60
    assert notices.roughly(watch.expected_wait(3)) == "about 60 seconds"
    assert [notices.roughly(s) for s in (0.3, 44, 200)] == [
        "a few seconds",
        "about 40 seconds",
        "about 3 minutes",
    ]


def test_cancelling_stops_at_the_next_tile_and_lets_the_next_job_in(server: Server) -> None:
    wide = server.upload(png(2400, 16))
    event = server.join("a", wide).json()["event_id"]
    assert server.slow.entered.wait(PATIENCE)
    server.cancel("a", event)
    server.until(lambda: not server.desk.line.is_awaited(event))
    server.slow.go.set()
    server.until(lambda: bool(server.entries()))
    (entry,) = server.entries()
    assert entry["error"] == "StoppedError" and (entry["width"], entry["height"]) == (2400, 16)
    assert server.slow.tiles == 1, "of four"
    server.join("b", server.upload(png())).raise_for_status()
    assert server.outcome("b")["success"]


def test_the_tab_itself_works_and_stops(server: Server) -> None:
    wide = server.upload(png(2400, 16))
    event = server.join("a", wide, "the tab", [], "", None, "type").json()["event_id"]
    assert server.slow.entered.wait(PATIENCE)
    server.cancel("a", event, "the tab")
    server.until(lambda: not server.desk.line.is_awaited(event))
    server.slow.go.set()
    server.until(lambda: bool(server.entries()))
    assert server.entries()[0]["error"] == "StoppedError" and server.slow.tiles == 1
    server.join("b", wide, "the tab", ["derain"], "", None, "type")
    assert server.outcome("b")["success"]
    entry = server.entries()[-1]
    assert entry["event"] == "restore.run" and "error" not in entry and len(entry["experts"]) in (1, 2)


def test_a_waiting_job_can_be_cancelled(server: Server) -> None:
    photo = server.upload(png())
    server.join("a", photo)
    assert server.slow.entered.wait(PATIENCE)
    event = server.join("b", photo).json()["event_id"]
    server.cancel("b", event)
    assert server.desk.jobs()[0] == []
    server.slow.go.set()
    assert server.outcome("a")["success"]


def test_a_job_has_a_time_limit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.join("a", server.upload(png(2400, 16)))
    assert server.slow.entered.wait(PATIENCE)
    monkeypatch.setattr(server.desk.watch, "limits", Limits(seconds=-1))  # the clock is past any such limit
    server.slow.go.set()
    refused = server.outcome("a")
    assert refused["success"] is False and "may take: make the photo smaller." in refused["output"]["error"]
    assert server.entries()[-1]["error"] == "OutOfTimeError"


def test_the_page_has_a_button_that_stops(server: Server) -> None:
    (stop,) = (block for block in server.page.blocks.values() if getattr(block, "elem_id", "") == "stop")
    (cancelling,) = (fn for fn in server.page.fns.values() if fn.cancels)
    (run,) = (server.page.fns[number] for number in cancelling.cancels)
    assert run.concurrency_id == MODEL_QUEUE
    assert "verdict" in {getattr(block, "elem_id", "") for block in run.outputs}
    assert cancelling.targets == [(stop._id, "click")]


# What is told and what is logged


def test_a_job_leaves_one_line_without_photo_or_name(server: Server) -> None:
    server.slow.go.set()
    server.join("a", server.upload(png(), "secret.png"), "restore", [], "1-2")
    assert server.outcome("a")["success"]
    (entry,) = server.entries()
    assert entry["event"] == "api.restore" and entry["experts"] == ["1-2"]
    assert (entry["width"], entry["height"]) == (48, 32) and entry["seconds"] >= 0
    assert set(entry) == {"time", "event", "seconds", "width", "height", "experts"}
    assert "secret" not in server.log.getvalue()


def test_a_bad_photo_is_told_and_its_kind_logged(server: Server) -> None:
    server.join("a", server.upload(b"secret text"))
    assert server.outcome("a")["output"]["error"].startswith("This photo cannot be used")
    assert server.entries()[-1]["error"] == "ValueError" and "secret" not in server.log.getvalue()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (RuntimeError("secret: index 7 out of range"), "it is not your mistake"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "not enough memory"),
        (OSError(5, "Input/output error"), "it is not your mistake"),
    ],
)
def test_what_nobody_expected_is_a_sentence(server: Server, failure: BaseException, reason: str) -> None:
    server.slow.failure = failure
    server.slow.go.set()
    server.join("a", server.upload(png()))
    refused = server.outcome("a")
    assert refused["success"] is False and reason in refused["output"]["error"]
    entry = server.entries()[-1]
    assert entry["error"] == type(failure).__name__ and "test_serve.py" in entry["detail"][-1]
    assert "secret" not in server.log.getvalue() + json.dumps(refused)
    server.slow.failure = None
    server.join("b", server.upload(png()))
    assert server.outcome("b")["success"], "the server lives on"


@pytest.mark.parametrize(
    "data",
    [
        [],
        [None],
        ["text"],
        [{"path": 5}],
        [[1, 2]],
        [{"url": "data:image/png;base64,%%%"}, [], ""],
        [7, 7, 7],
    ],
)
def test_wrong_inputs_are_a_sentence(server: Server, data: list, capfd: pytest.CaptureFixture[str]) -> None:
    body = {"data": data, "fn_index": server.number("restore"), "session_hash": f"{server.test}a"}
    server.http.post("/gradio_api/queue/join", json=body).raise_for_status()
    refused = server.outcome("a")
    assert refused["success"] is False and refused["output"]["error"].endswith(".")
    assert "Traceback" not in json.dumps(refused) + capfd.readouterr().err


@pytest.mark.parametrize("number", [-1, 10**9])
def test_an_unknown_event_is_a_sentence(server: Server, number: int) -> None:
    body = {"data": [], "fn_index": number, "session_hash": "a"}
    answer = server.http.post("/gradio_api/queue/join", json=body)
    assert answer.status_code == 400 and answer.json()["detail"] == notices.wrong_input()


@pytest.mark.parametrize("path", ["queue/join", "run/restore", "call/restore", "reset", "cancel", "upload"])
def test_what_cannot_be_read_is_told_and_not_logged(
    server: Server, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A photo sent as it is, in place of JSON or a form, would be logged whole by the web server."""
    photo = b"\xff\xd8secret" + png()
    answer = server.http.post(f"/gradio_api/{path}", content=photo)
    assert 400 <= answer.status_code < 500 and "Traceback" not in answer.text and len(answer.text) < 400
    logged = capfd.readouterr()
    assert "secret" not in logged.err + logged.out + server.log.getvalue() and "Traceback" not in logged.err
    assert all(set(entry) <= {"time", "event", "error"} for entry in server.entries())
    assert server.http.get("/healthz").json()["status"] == "ok"


def test_a_fault_of_the_server_is_told_and_its_place_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server.desk, "jobs", lambda: 1 / 0)  # what /healthz counts
    answer = server.http.get("/healthz")
    assert answer.status_code == 500 and answer.text == notices.fault()
    monkeypatch.undo()
    (entry,) = server.entries()
    assert entry["error"] == "ZeroDivisionError" and entry["detail"][-1].startswith("test_serve.py:")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("path", ["/etc/hostname", "../../etc/hostname", str(ROOT / "assets/page.png")])
def test_files_of_the_server_cannot_be_named(server: Server, path: str) -> None:
    assert (ROOT / "assets/page.png").is_file()
    server.slow.go.set()
    for photo in ({"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}, path):
        server.join("a", photo)
        refused = server.outcome("a")
        assert refused["success"] is False, photo
        server.join("a", [photo], "route_given")
        outcome = server.outcome("a")
        assert outcome["success"] is False or "None of these files is a photo" in json.dumps(outcome)
    assert server.slow.tiles == 0


# Files


def test_requests_that_are_too_large_are_refused(server: Server) -> None:
    answer = server.http.post("/gradio_api/upload", files={"files": ("a.png", bytes(2 * 2**20))})
    assert answer.status_code == 413 and answer.text == "The request is larger than 1 MB: send less at once."

    def unmeasured() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(40):
            yield bytes(2**16)
        yield b"\r\n--x--\r\n"

    before = set(server.desk.folder.rglob("*"))
    headers = {"content-type": "multipart/form-data; boundary=x"}
    with contextlib.suppress(httpx.TransportError):  # hung up in the middle
        answer = httpx.post(f"{server.url}/gradio_api/upload", content=unmeasured(), headers=headers)
        assert answer.status_code == 413
    assert {path for path in set(server.desk.folder.rglob("*")) - before if path.suffix == ".png"} == set()
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_full_disk_takes_no_photos(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unirestorer.demo.hosting.serve.free_bytes", lambda folder: 1000)
    answer = server.http.post("/gradio_api/upload", files={"files": ("a.png", png())})
    assert answer.status_code == 507 and "disk is full" in answer.text


def test_every_file_of_a_visitor_is_deleted_in_time(server: Server) -> None:
    server.slow.go.set()
    photo = server.upload(png())
    server.join("a", photo)
    result = server.outcome("a")["output"]["data"][0]["path"]
    made = [path for path in server.desk.folder.rglob("*") if path.is_file()]
    assert Path(result) in made and Path(photo["path"]) in made
    assert host.sweep(server.desk.folder, 3600, 2**40) == 0, "nothing is too old yet"
    assert host.sweep(server.desk.folder, 3600, 2**40, time.time() + 3700) == len(made)
    assert list(server.desk.folder.iterdir()) == [], "folders too"
    server.join("b", photo)
    assert "upload it again" in server.outcome("b")["output"]["error"]


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/photo.png").write_bytes(bytes(1000))
        time.sleep(0.02)  # the times of two files differ
    assert host.sweep(tmp_path, 3600, 2500) == 0, "all are young"
    assert host.sweep(tmp_path, 3600, 2500, time.time() + 100) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    assert host.sweep(tmp_path, 3600, 0, time.time() - 10**6) == 2, "the clock was set back"


def test_a_link_in_the_folder_is_deleted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/photo.png").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/link").symlink_to(tmp_path / "elsewhere")
    assert host.sweep(tmp_path / "folder", 10, 0, time.time() + 100) == 1
    assert (tmp_path / "elsewhere/photo.png").read_bytes() == b"kept"


# Starting and stopping


def test_limits_are_read_and_checked() -> None:
    assert read_limits("") == Limits()
    assert read_limits("seconds=60, jobs=16") == Limits(jobs=16, seconds=60)
    for text, reason in (
        ("jobs", "name=number"),
        ("jobs=-1", "name=number"),
        ("jbs=1", "known keys"),
        ("jobs=0", "least 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_limits(text)


def test_stopping_finishes_what_runs_and_tells_the_others(model: UniRestorer, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        server = Server(model, LIMITS, tmp_path)
        photo = server.upload(png())
        outcomes: dict[str, dict[str, Any]] = {}

        def visit(session: str) -> threading.Thread:
            server.join(session, photo).raise_for_status()
            thread = threading.Thread(target=lambda: outcomes.update({session: server.outcome(session)}))
            thread.start()
            return thread

        visitors = [visit("a")]
        assert server.slow.entered.wait(PATIENCE)
        visitors.append(visit("b"))
        stop = threading.Thread(target=server.desk.stop)
        stop.start()
        server.until(lambda: server.desk.stopping and not server.desk.jobs()[0])
        assert server.http.get("/healthz").status_code == 503
        visitors.append(visit("c"))
        server.slow.go.set()
        for thread in (*visitors, stop):
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert outcomes["a"]["success"], "it was running"
        for session in "bc":
            assert outcomes[session]["output"]["error"] == notices.stopping()
        assert server.entries()[-1] == {**server.entries()[-1], "event": "stopped", "unfinished": 0}
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/healthz", timeout=5)


def test_all_jobs_share_the_one_queue(server: Server) -> None:
    assert all(
        fn.concurrency_limit == 1 for fn in server.page.fns.values() if fn.concurrency_id == MODEL_QUEUE
    )
    assert server.page.api_open is False
    answer = server.http.post("/gradio_api/run/restore", json={"data": [None, [], ""]})
    assert answer.status_code == 404, "nobody passes the queue by"


def app(tmp_path: Path, checkpoint: Path, **settings: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        **{"UNIRESTORER_CHECKPOINT": str(checkpoint), "UNIRESTORER_DEVICE": "cpu"},
        **{"GRADIO_TEMP_DIR": str(tmp_path / "visitors"), **settings},
    }
    command = [sys.executable, "app.py"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("GRADIO_SERVER_PORT", "abc", "GRADIO_SERVER_PORT: expected a number from 1 to 65535, got 'abc'"),
        ("GRADIO_SERVER_PORT", "TAKEN", "address already in use: choose another one with GRADIO_SERVER_PORT"),
        ("GRADIO_TEMP_DIR", "/proc/nowhere", "name a writable folder with GRADIO_TEMP_DIR"),
        ("UNIRESTORER_LIMITS", "jobs", "UNIRESTORER_LIMITS: expected name=number"),
        ("UNIRESTORER_CHECKPOINT", "/nowhere", "no checkpoint"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, name: str, value: str, reason: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        value = str(taken.getsockname()[1]) if value == "TAKEN" else value
        process = app(tmp_path, tiny_checkpoint, **{name: value})
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, errors
    assert errors.startswith("app.py: ") and reason in errors and errors.count("\n") == 1


def test_sigterm_ends_the_process_cleanly(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = app(tmp_path, tiny_checkpoint, GRADIO_SERVER_PORT=str(port))
    try:
        for _ in range(10 * PATIENCE):
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE)
                break
            except httpx.TransportError:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.1)
        assert answer.json()["checkpoint"] == tiny_checkpoint.name
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in errors.splitlines()] == ["stopping", "stopped"]
    assert [path for path in (tmp_path / "visitors").rglob("*") if path.is_file()] == []
