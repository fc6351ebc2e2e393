"""`kill -9` at random moments of a folder run and of saving a checkpoint: nothing lost, nothing half-written.

    python -m tests.kills --times 20 --seed 0

Each folder run is killed once, looked at, and begun again: what was there is whole and stays as it is, in the
end every photo is that of a run that nobody killed, and no other file is left. Each saving of a checkpoint is
killed once: what was complete before can be read, and the same command again completes it. Prints each round;
exit code 1 on a finding.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import make_tiny_checkpoint
from unirestorer.checkpoint import Checkpoint, verify

ROOT = Path(__file__).parent.parent
PHOTOS = 24
SAVE = """
import sys
from pathlib import Path
from training.build.parts import add_expert
from unirestorer.checkpoint import Checkpoint
old, folder = Checkpoint(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
for name in old.tree().expert_names:
    add_expert(folder, name, old.shape(name), old.expert(name), {"steps": 1})
"""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, hidden ones too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def draw(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir()
    for number in range(PHOTOS):
        height, width = random.integers(200, 900, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")


def killed(words: list[str], after: float) -> bool:
    """Start a command and kill it after some seconds; False if it had ended by then."""
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def folder_runs(work: Path, checkpoint: Path, times: int, random: np.random.Generator) -> list[str]:
    """The findings of `times` killed folder runs."""
    draw(work / "photos", random)
    command = [sys.executable, "-m", "unirestorer", "restore", str(work / "photos"), "--checkpoint"]
    command += [str(checkpoint), "--device", "cpu", "-o"]
    start = time.monotonic()
    subprocess.run([*command, str(work / "whole")], cwd=ROOT, check=True, capture_output=True)
    seconds = time.monotonic() - start
    expected = digests(work / "whole")
    findings = []
    for number in range(times):
        out = work / f"out-{number}"
        moment = random.uniform(0.3, 1.0) * seconds
        was_killed = killed([*command, str(out)], moment)
        there = digests(out) if out.exists() else {}
        pictures = {name: digest for name, digest in there.items() if name in expected}
        stamps = {name: (out / name).stat().st_mtime_ns for name in pictures}
        if any(expected[name] != digest for name, digest in pictures.items()):
            findings.append(f"folder run {number}: a photo was half-written")
        again = subprocess.run([*command, str(out)], cwd=ROOT, check=False, capture_output=True, text=True)
        if again.returncode:
            findings.append(f"folder run {number}: the second run failed: {again.stderr[-200:]}")
        if digests(out) != expected:
            findings.append(f"folder run {number}: the folder differs from a run that nobody killed")
        ended = len(pictures) == len(expected)  # then the same command is a new run
        if not ended and any((out / name).stat().st_mtime_ns != stamp for name, stamp in stamps.items()):
            findings.append(f"folder run {number}: a finished photo was made again")
        state = "killed" if was_killed else "had ended"
        say(
            f"folder run {number + 1}/{times}: {state} after {moment:.1f} s with {len(pictures)} of "
            f"{len(expected)} photos; then complete"
        )
    return findings


def savings(work: Path, checkpoint: Path, times: int, random: np.random.Generator) -> list[str]:
    """The findings of `times` killed savings of 27 experts over those of a complete checkpoint."""
    command = [sys.executable, "-c", SAVE, str(checkpoint)]
    findings = []
    seconds = 0.0
    for number in range(-1, times):  # the first one is not killed: it says how long it takes
        folder = make_tiny_checkpoint(work / f"checkpoint-{number}")
        whole = digests(folder)
        process = subprocess.Popen([*command, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        start = time.monotonic()
        if number < 0:
            process.wait()
            seconds = time.monotonic() - start
            continue
        time.sleep(random.uniform(0, seconds))
        process.kill()
        process.wait()
        names = set(digests(folder))
        half = 0
        for name in Checkpoint(folder).config["files"]:
            try:
                Checkpoint(folder).read(name)
            except ValueError:
                half += 1  # written, but not yet in the config: at most one
        if half > 1 or not set(whole) <= names:
            findings.append(f"saving {number}: {half} parts cannot be read")
        subprocess.run([*command, str(folder)], cwd=ROOT, check=True, capture_output=True)
        try:
            parts = len(verify(folder))
        except ValueError as error:
            parts = 0
            findings.append(f"saving {number}: {error}")
        left = len(names - set(whole))
        say(
            f"saving {number + 1}/{times}: {half} parts ahead of the config, {left} temporary files; "
            f"after the same command again {parts} sound parts"
        )
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = make_tiny_checkpoint(work / "tiny")
        findings = folder_runs(work, checkpoint, arguments.times, random)
        findings += savings(work, checkpoint, arguments.times, random)
    for finding in findings:
        say(f"FINDING {finding}")
    say(f"{2 * arguments.times} kills, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
