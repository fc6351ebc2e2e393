"""Throw damaged files and wrong calls at the library and at a running page.

    python -m tests.fuzz --files 5000 --calls 2000 --seed 0

Every file ends in a photo or in one ValueError of one sentence; every call in a result or in a sentence
without traceback, path or markup; nothing hangs, no file stays, the server lives on. Prints each finding with
what makes it again, then a summary; exit code 1 on a finding. `--minutes` bounds the whole.
"""

from __future__ import annotations

import argparse
import faulthandler
import html
import io
import json
import logging
import os
import socket
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from tests.helpers import make_tiny_checkpoint
from unirestorer.imaging import load_image

HANG_SECONDS = 60
LONGEST_SENTENCE = 400
ONE_USE = httpx.Limits(max_keepalive_connections=0)  # a call never meets the connection of the one before
Random = np.random.Generator


@dataclass
class Findings:
    """What went wrong, and how everything ended."""

    texts: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)

    def add(self, what: str) -> None:
        self.texts.append(what)

    def summary(self) -> str:
        ends = ", ".join(f"{name} {count}" for name, count in self.ends.most_common())
        return f"{sum(self.ends.values())} tried: {ends}; {len(self.texts)} findings"


# Files


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"\0" * 99) -> bytes:
    """A PNG that claims a size, with pixels that need not fit."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def whole_files(random: Random) -> dict[str, bytes]:
    """Files to start from: sound photos of all kinds, and things that are no photos."""
    pixels = random.integers(0, 256, (23, 31, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 60_000
    grey = Image.fromarray(random.integers(0, 65536, (23, 31), dtype=np.uint16))
    frames = [photo.rotate(angle) for angle in (0, 90, 180)]
    stack = {"save_all": True, "append_images": frames * 20}
    return {
        "photo.png": encoded(photo, "PNG"),
        "photo.jpg": encoded(photo, "JPEG", exif=exif.tobytes()),
        "progressive.jpg": encoded(photo, "JPEG", progressive=True),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "photo.webp": encoded(photo, "WEBP", lossless=True),
        "photo.bmp": encoded(photo, "BMP"),
        "palette.png": encoded(photo.convert("P"), "PNG", transparency=3),
        "alpha.png": encoded(photo.convert("RGBA"), "PNG"),
        "grey16.png": encoded(grey, "PNG"),
        "grey16.tif": encoded(grey, "TIFF"),
        "deflated.tif": encoded(photo, "TIFF", compression="tiff_adobe_deflate"),
        "lzw.tif": encoded(photo, "TIFF", compression="tiff_lzw"),
        "stack.tif": encoded(photo, "TIFF", **stack),
        "moving.gif": encoded(photo, "GIF", **stack),
        "moving.png": encoded(photo, "PNG", **stack),
        "line.png": encoded(Image.new("L", (20_000, 1), 7), "PNG"),
        "column.jpg": encoded(Image.new("RGB", (1, 20_000)), "JPEG"),
        "dot.png": encoded(Image.new("1", (1, 1)), "PNG"),
        "bomb.png": png_of(60_000, 60_000),
        "claims.png": png_of(2**31 - 1, 2**31 - 1, 16, 6),
        "zero.png": png_of(0, 0),
        "text_bomb.png": encoded(photo, "PNG")[:33]
        + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**24)))
        + encoded(photo, "PNG")[33:],
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "page.html": b"<html><script>alert(1)</script></html>",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "paper.pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
        "archive.zip": b"PK\x03\x04" + bytes(60),
        "pickle.png": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "empty.png": b"",
    }


def mutated(random: Random, whole: dict[str, bytes]) -> tuple[str, bytes]:
    """A name and bytes that somebody might send."""
    names = list(whole)
    name = names[random.integers(len(names))]
    data = bytearray(whole[name])
    for _ in range(random.integers(0, 4)):
        kind = random.integers(9)
        at = int(random.integers(len(data) + 1))
        other = whole[names[random.integers(len(names))]]
        if kind == 0:
            del data[at:]
        elif kind == 1:
            for place in random.integers(0, max(len(data), 1), random.integers(1, 9)):
                if data:
                    data[place] = random.integers(256)
        elif kind == 2:
            for place in random.integers(0, max(min(len(data), 64), 1), 3):
                if data:
                    data[place] = random.integers(256)
        elif kind == 3:
            data[at:at] = other  # one file inside another
        elif kind == 4:
            data += other  # two files at once
        elif kind == 5:
            data[:0] = other[:64]
        elif kind == 6:
            data[at:at] = random.bytes(int(random.integers(1, 300)))
        elif kind == 7:
            del data[at : at + int(random.integers(1, 60))]
        elif len(data) > 8:
            data[at : at + 4] = random.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
    return hostile_name(random, name), bytes(data)


def hostile_name(random: Random, name: str) -> str:
    """The name itself, or one that is meant to break something."""
    stem, _, suffix = name.rpartition(".")
    names = [
        *(name, f"{stem}.jpg", f"{stem}.png.exe", f"{stem}.svg", stem),
        *(f"<img src=x onerror=alert(1)>.{suffix}", f"a\nb.{suffix}", f"{'x' * 180}.{suffix}"),
        *(f"'; drop.{suffix}", f"%2e%2e%2f{name}", f"\u202e{name}", f"-rf {name}", f"..{name}"),
    ]
    return names[random.integers(len(names))]


def complaint(message: str, longest: int = LONGEST_SENTENCE) -> str:
    """What is wrong with a sentence that a visitor is told; empty if nothing."""
    for mark in ("Traceback", "site-packages", 'File "', "\n", "<img", "<script", "object at 0x"):
        if mark in message:
            return f"it holds {mark!r}"
    if not 5 <= (length := len(html.unescape(message))) <= longest:
        return f"it has {length} characters"
    return ""


def try_file(name: str, data: bytes, folder: Path) -> tuple[str, str]:
    """How a file ended, and what was wrong with that."""
    path = folder / name
    path.write_bytes(data)
    start = time.thread_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's notes on damaged metadata
            x = load_image(path)
    except ValueError as error:
        end, wrong = "refused", complaint(str(error).removeprefix(" ".join(name.split())))
        if type(error) is not ValueError or str(folder) in str(error):
            wrong = f"it is a {type(error).__name__}: {str(error)[:200]}"
        wrong = wrong and f"the refusal {str(error)[:200]!r}: {wrong}"
    except Exception as error:  # the finding that this script is after
        end, wrong = "raised", f"{type(error).__name__}: {str(error)[:200]}"
    else:
        end, wrong = "read", ""
        if x.ndim != 4 or x.shape[:2] != (1, 3) or x.dtype != torch.float32 or x.numel() == 0:
            wrong = f"it became {tuple(x.shape)} of {x.dtype}"
        elif not (x.min() >= 0 and x.max() <= 1):
            wrong = f"its values go from {x.min():g} to {x.max():g}"
    if time.thread_time() - start > HANG_SECONDS:
        wrong = wrong or f"it took {time.thread_time() - start:.0f} s of the processor"
    path.unlink()
    if left := [path.name for path in folder.iterdir()]:
        wrong = wrong or f"it left {left}"
    return end, wrong


def fuzz_files(count: int, seed: int, until: float) -> Findings:
    """`load_image` on `count` files, the damaged ones drawn by (seed, number)."""
    findings, whole = Findings(), whole_files(np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as name:
        for number in range(count):
            if time.monotonic() > until:
                break
            name_, data = mutated(np.random.default_rng((seed, number)), whole)
            end, wrong = try_file(name_, data, Path(name))
            findings.ends[end] += 1
            if wrong:
                findings.add(f"file {number} of seed {seed} ({name_[:40]!r}, {len(data)} bytes): {wrong}")
    return findings


# Calls


@dataclass
class Target:
    """A running page: its address, the events that can be called and how many inputs each has."""

    url: str
    events: dict[int, int]
    entries: Callable[[], list[dict[str, Any]]]  # of its log
    files: Callable[[], list[Path]]  # of visitors that would outlive their time


@contextmanager
def running_page(folder: Path) -> Iterator[Target]:
    """A page of random weights in this process."""
    from unirestorer import UniRestorer
    from unirestorer.demo.hosting.host import Limits, sweep
    from unirestorer.demo.hosting.serve import open_desk
    from unirestorer.demo.page import launch_options

    model = UniRestorer.from_pretrained(make_tiny_checkpoint(folder / "tiny"), device="cpu")
    visitors = folder / "visitors"
    visitors.mkdir(exist_ok=True)
    desk = open_desk([model], Limits(seconds=HANG_SECONDS), visitors)
    log = io.StringIO()
    desk.watch.log = log
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _, url, _ = desk.page.launch(
        **launch_options(), **desk.options(), server_port=port, prevent_thread_lock=True, quiet=True
    )

    def entries() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.getvalue().splitlines()]

    def files() -> list[Path]:
        sweep(visitors, 3600, 2**40, time.time() + 3700)
        return [path for path in visitors.rglob("*") if path.is_file()]

    events = {fn._id: len(fn.inputs) for fn in desk.page.fns.values() if fn.fn is not None and fn.queue}
    try:
        yield Target(url.rstrip("/"), events, entries, files)
    finally:
        desk.page.close(verbose=False)


def rubbish(random: Random, photo: str, depth: int = 0) -> Any:
    """JSON of any shape; now and then something that is nearly right."""
    values = [
        *(None, True, -1, 0, 7, 2**70, 1e308, -0.0, "", "derain", "1-2", "9-9", "\0", "\ud83c\udf27" * 40),
        *("<script>alert(1)</script>", "../../etc/passwd", "x" * 5000, "[" * 2000, "NaN", "{}"),
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": photo, "meta": {"_type": "gradio.FileData"}},
        {"path": "../" * 9 + "etc/passwd"},
        {"url": "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}},
        {"url": "data:image/png;base64,%%%%"},
        {"__type__": "update", "value": 3},
        '{"steps": [{"kind": "noise", "sigma_8bit": 25}], "seed": -1}',
        '{"steps": [{"kind": "blur", "sigma_x_px": 1e999}]}',
        ["derain", "dehaze"],
    ]
    kind = random.integers(10)
    if kind == 0 and depth < 4:
        return [rubbish(random, photo, depth + 1) for _ in range(random.integers(4))]
    if kind == 1 and depth < 4:
        return {str(random.integers(5)): rubbish(random, photo, depth + 1) for _ in range(random.integers(4))}
    return values[random.integers(len(values))]


def call_queue(http: httpx.Client, random: Random, target: Target, photo: str, session: str) -> str:
    """An event through the queue with the wrong inputs; the sentence it ended with, or empty."""
    numbers = [*target.events, -1, 10**9]
    number = numbers[random.integers(len(numbers))]
    inputs = target.events.get(number, 2)
    count = inputs if random.random() < 0.8 else int(random.integers(0, 9))
    body = {"data": [rubbish(random, photo) for _ in range(count)], "fn_index": number}
    content = json.dumps({**body, "session_hash": session})
    answer = http.post(
        "/gradio_api/queue/join", content=content, headers={"content-type": "application/json"}
    )
    if answer.status_code != 200 or "event_id" not in answer.text:
        return answer.text
    with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
            if message["msg"] == "process_completed":
                if message["success"]:
                    return ""
                return str(message["output"].get("error"))
            if message["msg"] in ("unexpected_error", "close_stream"):
                return str(message.get("message"))
    return "the stream ended without a result"


def call_endpoint(http: httpx.Client, random: Random, photo: str) -> str:
    """A named endpoint, as a program without gradio_client calls it."""
    name = ("restore", "inspect", "degrade", "nothing")[random.integers(4)]
    data = [rubbish(random, photo) for _ in range(random.integers(0, 7))]
    if random.random() < 0.3:
        data[:1] = [{"path": photo, "meta": {"_type": "gradio.FileData"}}]
    content = json.dumps({"data": data})
    answer = http.post(
        f"/gradio_api/call/{name}", content=content, headers={"content-type": "application/json"}
    )
    if answer.status_code != 200:
        return answer.text
    answered = http.get(f"/gradio_api/call/{name}/{answer.json()['event_id']}").text
    event, _, data_line = answered.strip().rpartition("event: ")[2].partition("\n")
    if event == "complete":
        return ""
    sentence = json.loads(data_line.removeprefix("data: "))
    return str(sentence.get("error") if isinstance(sentence, dict) else sentence)


def call_raw(http: httpx.Client, random: Random) -> str:
    """A request that no client of ours would make."""
    paths = [
        *("/gradio_api/queue/join", "/gradio_api/call/restore", "/gradio_api/cancel", "/gradio_api/upload"),
        *("/gradio_api/run/restore", "/gradio_api/reset", "/gradio_api/component_server"),
    ]
    bodies = [
        *(
            b"",
            b"{",
            b"[" * 5000,
            b"null",
            b"[]",
            b'{"data": 5}',
            random.bytes(200),
            b"\xff\xfe",
            b'{"data": []}',
        ),
        *(b'{"data": [], "fn_index": "x"}', b'{"session_hash": [], "event_id": 7}', b"--x\r\n\r\n--x--"),
    ]
    kinds = ["application/json", "text/plain", "multipart/form-data; boundary=x", "multipart/form-data", ""]
    answer = http.post(
        paths[random.integers(len(paths))],
        content=bodies[random.integers(len(bodies))],
        headers={"content-type": kinds[random.integers(len(kinds))]},
    )
    return "" if answer.status_code < 300 else answer.text


def call_address(http: httpx.Client, random: Random) -> str:
    """Addresses with rubbish, and files that are not ours to give; a secret that comes back is told."""
    addresses = [
        *("/?example=<script>&tasks=juggle&expert=9-9", "/?task=%00&strength=nan&seed=-1&tab=" + "x" * 3000),
        *("/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd", "/file=/etc/passwd"),
        *(
            "/gradio_api/file=%2Fetc%2Fpasswd",
            "/gradio_api/file=..%5C..%5Cetc%5Cpasswd",
            "/assets/../../app.py",
        ),
        *("/static/%2e%2e/%2e%2e/routes.py", "/gradio_api/proxy=http://127.0.0.1:1/", "/config", "/healthz"),
        *("/gradio_api/queue/data?session_hash=none", "/gradio_api/call/restore/none", "/monitoring"),
    ]
    answer = http.get(addresses[random.integers(len(addresses))])
    if "root:" in answer.text or "def main" in answer.text:
        return "Traceback of a secret: a file of the server was given away"
    return "" if answer.status_code < 400 else answer.text


def call_photo(http: httpx.Client, random: Random, whole: dict[str, bytes]) -> str:
    """A damaged file, uploaded and inspected."""
    name, data = mutated(random, whole)
    answer = http.post("/gradio_api/upload", files={"files": (name.replace("\n", " "), data)})
    if answer.status_code != 200:
        return answer.text
    (path,) = answer.json()
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
    answer = http.post("/gradio_api/call/inspect", json={"data": [photo, []]})
    answered = http.get(f"/gradio_api/call/inspect/{answer.json()['event_id']}").text
    if "event: complete" in answered:
        return ""
    return json.loads(answered.strip().rpartition("data: ")[2])["error"]


def fuzz_calls(count: int, seed: int, until: float) -> Findings:
    """`count` calls to a page that is started here; afterwards it has to restore a photo."""
    findings, whole = Findings(), whole_files(np.random.default_rng(seed))
    with (
        tempfile.TemporaryDirectory() as name,
        temporary_place(Path(name)),
        running_page(Path(name)) as target,
        logged_exceptions() as logged,
        httpx.Client(base_url=target.url, timeout=HANG_SECONDS, limits=ONE_USE) as http,
    ):
        photo = upload(http, whole["photo.png"])
        for number in range(count):
            if time.monotonic() > until:
                break
            random = np.random.default_rng((seed, 1, number))
            kind = ("queue", "endpoint", "raw", "address", "photo")[number % 5]
            calls: dict[str, Callable[[], str]] = {
                "queue": lambda: call_queue(http, random, target, photo, f"fuzz{number}"),  # noqa: B023
                "endpoint": lambda: call_endpoint(http, random, photo),  # noqa: B023
                "raw": lambda: call_raw(http, random),  # noqa: B023
                "address": lambda: call_address(http, random),  # noqa: B023
                "photo": lambda: call_photo(http, random, whole),  # noqa: B023
            }
            answered = ""
            try:
                answered = calls[kind]()
                # What a raw request is told may repeat it, as JSON.
                wrong = answered and complaint(answered, 2**20 if kind == "raw" else LONGEST_SENTENCE)
            except httpx.TimeoutException:
                wrong = f"no answer within {HANG_SECONDS} s"
            except httpx.TransportError as error:
                # The server may hang up on what is no request, and on a stream of nobody's session.
                wrong = "" if kind in ("raw", "address") else f"the server hung up: {error!r:.200}"
            except (httpx.HTTPError, ValueError, KeyError, AttributeError) as error:
                wrong = f"an answer that cannot be read: {error!r:.200}"
            findings.ends[f"{kind} {'told' if answered else 'done'}"] += 1
            if wrong:
                findings.add(f"call {number} of seed {seed} ({kind}): {wrong}: {answered[:200]!r}")
        if not survives(http, upload(http, whole["photo.png"])):
            findings.add("the server does not restore a photo any more")
        for entry in target.entries():
            if "detail" in entry:  # an exception that nobody expected
                findings.add(f"the log says {json.dumps(entry)[:300]}")
        if logged:
            findings.add(f"the web server logged {len(logged)} exceptions, first {logged[0][:200]!r}")
        if left := target.files():
            findings.add(f"{len(left)} files stay, {left[0].name[:40]!r} among them")
    return findings


@contextmanager
def logged_exceptions() -> Iterator[list[str]]:
    """What the web server logs of exceptions meanwhile: it tells them whole, with what a request held."""
    texts: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                texts.append(repr(record.exc_info[1]))

    handler, logger = Handler(), logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)


@contextmanager
def temporary_place(folder: Path) -> Iterator[None]:
    """All temporary files of this process in a folder, Gradio's among them."""
    old = tempfile.tempdir, os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = str(folder / "visitors")
    try:
        yield
    finally:
        tempfile.tempdir = old[0]
        if old[1] is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = old[1]


def upload(http: httpx.Client, data: bytes) -> str:
    (path,) = http.post("/gradio_api/upload", files={"files": ("photo.png", data)}).raise_for_status().json()
    return path


def survives(http: httpx.Client, photo: str) -> bool:
    """Whether the page still restores."""
    inputs = [{"path": photo, "meta": {"_type": "gradio.FileData"}}, ["derain"], ""]
    answer = http.post("/gradio_api/call/restore", json={"data": inputs})
    answered = http.get(f"/gradio_api/call/restore/{answer.json()['event_id']}").text
    return "event: complete" in answered and http.get("/healthz").json()["status"] == "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="upper bound of the whole")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    faulthandler.dump_traceback_later(60 * args.minutes + 2 * HANG_SECONDS, exit=True)  # a hang, exit code 1
    bad = False
    for name, run, count in (("files", fuzz_files, args.files), ("calls", fuzz_calls, args.calls)):
        findings = run(count, args.seed, until)
        print(*findings.texts, f"{name}: {findings.summary()}", sep="\n")  # noqa: T201
        bad = bad or bool(findings.texts)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
