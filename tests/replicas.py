"""What replicas are worth, and what a thousand photos cost: one replica with all cores beside several that
share them.

    python -m tests.replicas --replicas 2 --photos 40 --px 512 --checkpoint single

Starts `unirestorer.deploy.ray_serve` on this machine, first with one replica of all threads, then with
`--replicas` that share the threads, in turns so that a noisy machine is noisy for both, and sends photos from
two clients per replica. Prints photos per second, core-seconds per photo and core-hours per
thousand; photos are degraded drawings, all of different seeds, so that different experts are asked.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from training.build.draw import draw_photo
from training.measure.machine import describe_machine
from unirestorer.degradation import draw_recipe
from unirestorer.imaging import encode_image, load_image
from unirestorer.types import Task

ROOT = Path(__file__).parent.parent
START_SECONDS = 240


def photos(count: int, px: int) -> list[bytes]:
    """PNG files of degraded drawings (px x px), the seven tasks in turn."""
    made = []
    for seed in range(count):
        x = load_image(draw_photo(seed, (px, px)))
        recipe = draw_recipe(seed, task=list(Task)[seed % len(Task)])
        made.append(encode_image(recipe.apply(x), "photo.png"))
    return made


@contextmanager
def running(checkpoint: str, replicas: int, threads: int) -> Iterator[str]:
    """The engine in a process of its own: its address. Raises RuntimeError when it does not start, and when
    it does not end in order once it is asked to.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--checkpoint", checkpoint, "--replicas", str(replicas), "--threads", str(threads)]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "unirestorer.deploy.ray_serve", *words, "--port", str(port)],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while b" replicas of " not in Path(log.name).read_bytes():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(Path(log.name).read_text()[-2000:])
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                raise RuntimeError(Path(log.name).read_text()[-2000:])
        finally:
            process.kill()


def send(address: str, photo: bytes) -> float:
    """Restore one photo; seconds until it was there."""
    start = time.perf_counter()
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}/restore", data=photo), timeout=600
    ) as answer:
        answer.read()
    return time.perf_counter() - start


def round_of(address: str, files: Sequence[bytes], clients: int, bar: tqdm) -> tuple[float, list[float]]:
    """Seconds until all files were restored by that many clients, and those of each photo."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        each = []
        for seconds in pool.map(send, [address] * len(files), files):
            each.append(seconds)
            bar.update(1)
    return time.perf_counter() - start, each


def measure(checkpoint: str, replicas: int, count: int, px: int, rounds: int) -> dict[str, object]:
    """Rows of both ways, medians over the rounds; the servers are started and measured in turn."""
    cores = os.cpu_count() or 1
    files = photos(count, px)
    ways = {1: cores, replicas: max(1, cores // replicas)}
    spent: dict[int, list[tuple[float, list[float]]]] = {number: [] for number in ways}
    with tqdm(total=len(files) * rounds * len(ways), unit="photo") as bar:
        for _ in range(rounds):
            for number, threads in ways.items():
                with running(checkpoint, number, threads) as address:
                    bar.set_description(f"{number} x {threads} threads")
                    for photo in files[: 2 * number]:  # warm: every replica has restored something
                        send(address, photo)
                    spent[number].append(round_of(address, files, 2 * number, bar))
    rows = []
    for number, threads in ways.items():
        seconds = statistics.median(total for total, _ in spent[number])
        each = [one for _, photos_ in spent[number] for one in photos_]
        rows.append(
            {
                "replicas": number,
                "threads": threads,
                "photos_per_second": count / seconds,
                "median_seconds": statistics.median(each),
                "core_seconds_per_photo": cores * seconds / count,
                "core_hours_per_thousand": cores * seconds / count * 1000 / 3600,
            }
        )
    about = {**describe_machine(torch.device("cpu")), "cores": cores}
    return {"checkpoint": checkpoint, "px": px, "photos": count, "rounds": rounds, **about, "rows": rows}


def main() -> int:
    """Measure and print; code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="single")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--px", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found = measure(args.checkpoint, args.replicas, args.photos, args.px, args.rounds)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
