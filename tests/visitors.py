"""Let many visitors use the page at once, and compare with what one visitor alone could have done.

    python -m tests.visitors --visitors 40 --minutes 5 --checkpoint single

Every visitor uploads a photo of a colour of its own, again and again, and waits for its restored photo.
Prints how many photos were restored, refused and wrong, the slowest answer of the page, and the server's
memory; exit code 1 where a photo was another's or failed. The server is `python app.py` in a process of its
own, on this machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
START_SECONDS = 120
REST_SECONDS = 2.0  # of a visitor who was refused
LOOK_SECONDS = 1.0  # between two looks at page and memory
OWN = 24  # most that a restored photo's mean colour may be off its own, of 255; colours lie further apart


@dataclass
class Tally:
    """What all visitors met. Threads add to it."""

    ends: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)  # seconds from click to result
    answers: list[float] = field(default_factory=list)  # seconds of the page
    memory: list[float] = field(default_factory=list)  # MB of the server
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Server:
    url: str
    process: int
    restore: int  # number of the event


@contextmanager
def running(checkpoint: str) -> Iterator[Server]:
    """`python app.py`, for visitors who in truth have an address each."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        settings = {
            "UNIRESTORER_CHECKPOINT": checkpoint,
            "UNIRESTORER_LIMITS": "address_jobs=1000",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_TEMP_DIR": folder,
        }
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            until = time.monotonic() + START_SECONDS
            while True:
                try:
                    config = httpx.get(f"{url}/config", timeout=10).json()
                    break
                except (httpx.HTTPError, ValueError):
                    if process.poll() is not None or time.monotonic() > until:
                        raise SystemExit("the server did not start") from None
                    time.sleep(0.3)
            number = next(d["id"] for d in config["dependencies"] if d.get("api_name") == "restore")
            yield Server(url, process.pid, number)
        finally:
            process.terminate()
            process.wait(60)


def photo_of(colour: tuple[int, int, int], side_px: int) -> bytes:
    """A noisy PNG around one colour."""
    noise = np.random.default_rng(colour).normal(0, 20, (side_px, side_px, 3))
    data = io.BytesIO()
    Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def colours(count: int) -> list[tuple[int, int, int]]:
    """Colours of the visitors, no two near each other."""
    steps = range(60, 200, 34)
    grid = [(red, green, blue) for red in steps for green in steps for blue in steps]
    if count > len(grid):
        raise SystemExit(f"{count} visitors: expected at most {len(grid)}, one per colour")
    return [grid[i * len(grid) // count] for i in range(count)]


def visit(
    server: Server,
    name: str,
    colour: tuple[int, int, int],
    side_px: int,
    go_on: Callable[[], bool],
    tally: Tally,
) -> None:
    """One visitor: uploads, asks, waits, looks whether the result is its own."""
    with httpx.Client(base_url=server.url, timeout=600) as http:
        while go_on():
            try:
                end = once(http, server, name, colour, side_px, tally)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                end = "failed"
                tally.failures.append(f"{type(error).__name__}: {error}"[:200])
            tally.ends[end] += 1
            if end != "restored":
                time.sleep(REST_SECONDS)


def once(
    http: httpx.Client, server: Server, name: str, colour: tuple[int, int, int], side_px: int, tally: Tally
) -> str:
    start = time.monotonic()
    files = {"files": ("photo.png", photo_of(colour, side_px), "image/png")}
    (path,) = http.post("/gradio_api/upload", files=files).raise_for_status().json()
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [photo, [], ""], "fn_index": server.restore, "session_hash": name}
    http.post("/gradio_api/queue/join", json=body).raise_for_status()
    output: dict[str, Any] = {}
    with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": name}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
            if message["msg"] == "process_completed":
                output = message["output"]
                break
    if "data" not in output:
        sentence = str(output.get("error"))
        tally.refusals[re.sub(r"\d+", "N", sentence)] += 1
        return "refused"
    restored = http.get("/gradio_api/file=" + output["data"][0]["path"]).raise_for_status().content
    with Image.open(io.BytesIO(restored)) as image:
        mean = np.asarray(image.convert("RGB")).mean((0, 1))
    tally.waits.append(time.monotonic() - start)
    return "restored" if float(np.abs(mean - colour).max()) <= OWN else "another's"


def watch(server: Server, go_on: Callable[[], bool], tally: Tally) -> None:
    """Somebody opens the page now and then; the server's memory is noted."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        while go_on():
            start = time.monotonic()
            try:
                http.get("/").raise_for_status()
                tally.answers.append(time.monotonic() - start)
            except httpx.HTTPError as error:
                tally.failures.append(f"the page: {type(error).__name__}")
            resident = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{server.process}/status").read_text())
            if resident:
                tally.memory.append(int(resident[1]) / 1000)
            time.sleep(LOOK_SECONDS)


def crowd(server: Server, count: int, seconds: float, side_px: int, name: str) -> Tally:
    """`count` visitors for a while; a photo that was begun in time is waited for, but does not count."""
    tally = Tally()
    end = time.monotonic() + seconds

    def go_on() -> bool:
        return time.monotonic() < end

    threads = [
        threading.Thread(target=visit, args=(server, f"{name}{i}", colour, side_px, go_on, tally))
        for i, colour in enumerate(colours(count))
    ]
    threads.append(threading.Thread(target=watch, args=(server, go_on, tally)))
    for thread in threads:
        thread.start()
    with tqdm(total=round(seconds), desc=name, unit="s") as bar:
        while time.monotonic() < end:
            time.sleep(1)
            bar.update(1)
            bar.set_postfix_str(", ".join(f"{name} {number}" for name, number in tally.ends.items()))
    restored = tally.ends["restored"]
    for thread in threads:
        thread.join()
    tally.ends["restored, too late"] = tally.ends["restored"] - restored
    tally.ends["restored"] = restored
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visitors", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--alone-minutes", type=float, default=1.0, help="of the one visitor before")
    parser.add_argument("--side", type=int, default=256, help="of the photos, in pixels")
    parser.add_argument("--checkpoint", default="single")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with running(arguments.checkpoint) as server:
        crowd(server, 1, 10, arguments.side, "warm up")
        alone = crowd(server, 1, 60 * arguments.alone_minutes, arguments.side, "alone")
        many = crowd(server, arguments.visitors, 60 * arguments.minutes, arguments.side, "many")
    rate = alone.ends["restored"] / arguments.alone_minutes
    ratio = many.ends["restored"] / arguments.minutes / rate if rate else 0.0
    third = max(1, len(many.memory) // 3)
    figures = {
        "visitors": arguments.visitors,
        "minutes": arguments.minutes,
        "side_px": arguments.side,
        "alone_per_minute": rate,
        "many_per_minute": many.ends["restored"] / arguments.minutes,
        "share_of_alone": ratio,
        "ends": dict(many.ends),
        "refusals": dict(many.refusals),
        "failures": many.failures[:20],
        "median_wait_s": statistics.median(many.waits) if many.waits else None,
        "slowest_page_s": max(many.answers, default=None),
        "memory_mb": {
            "alone": max(alone.memory, default=None),
            "first third": statistics.median(many.memory[:third]) if many.memory else None,
            "last third": statistics.median(many.memory[-third:]) if many.memory else None,
            "peak": max(many.memory, default=None),
        },
    }
    text = json.dumps(figures, indent=1)
    sys.stdout.write(text + "\n")
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 1 if many.failures or many.ends["another's"] else 0


if __name__ == "__main__":
    sys.exit(main())
