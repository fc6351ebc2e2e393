"""The command line, mostly in-process, on a checkpoint of random weights."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from training.build.parts import add_tree
from unirestorer import UniRestorer, experts
from unirestorer.batch import find_targets, read_ahead
from unirestorer.checkpoint import Checkpoint
from unirestorer.cli import STRENGTHS, build_parser, main
from unirestorer.degradation import RANGES, Recipe, compose
from unirestorer.degradation.recipe import DEGREES, degree_strengths, degree_words
from unirestorer.experts import ExpertBank
from unirestorer.files import atomic_write
from unirestorer.imaging import load_image, to_uint8
from unirestorer.journal import NAME as JOURNAL
from unirestorer.journal import Journal
from unirestorer.tree import DegradationTree
from unirestorer.types import Task

ROOT = Path(__file__).parent.parent
COMMANDS = ("restore", "inspect", "degrade", "verify")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> Run:
    """Run a command line, by default with the tiny checkpoint: exit code, stdout, stderr."""

    def run(*words: object, checkpoint: object = tiny_checkpoint) -> tuple[int, str, str]:
        argv = [str(word) for word in words]
        if argv[0] in ("restore", "inspect"):
            argv += ["--checkpoint", str(checkpoint), "--device", "cpu"]
        capsys.readouterr()
        try:
            code = main(argv)
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


def picture(
    path: Path, width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0, **options: object
) -> Path:
    """Write a photo of soft colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(np.random.default_rng(seed).integers(30, 220, (4, 5, 3), dtype=np.uint8))
    small.resize((width, height), Image.Resampling.BILINEAR).convert(mode).save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).copy()


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def assert_refused(outcome: tuple[int, str, str], *fragments: str) -> None:
    """Exit code 2, one line on stderr that says all of the fragments, nothing on stdout."""
    code, out, err = outcome
    assert code == 2
    assert out == ""
    assert re.fullmatch(r"unirestorer: [^\n]+\n", err), err
    for fragment in fragments:
        assert fragment in err


# Help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_examples_that_parse(command: str, run: Run) -> None:
    code, out, _ = run(*filter(None, [command]), "--help")
    assert code == 0
    examples = re.findall(r"^  python -m unirestorer (.*)$", out.split("example", 1)[1], re.MULTILINE)
    assert examples
    for example in examples:
        args = build_parser().parse_args(shlex.split(example.split(" > ")[0]))
        assert args.run.__name__ == (command or args.run.__name__)


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys; from unirestorer.cli import main\n"
        "try: main(['restore', '--help'])\n"
        "except SystemExit as error: assert error.code == 0\n"
        "heavy = {'gradio', 'sklearn', 'umap', 'plotly', 'open_clip', 'safetensors', 'PIL'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--report" in done.stdout


# Restore


def test_restores_what_the_library_restores(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    photo, out = picture(tmp_path / "a.png"), tmp_path / "new/folder/b.png"
    code, text, err = run("restore", photo, "-o", out)
    assert (code, err) == (0, "")
    expected = UniRestorer.from_pretrained(tiny_checkpoint, device="cpu").restore(photo)
    assert np.array_equal(pixels(out), to_uint8(expected.image))
    assert not np.array_equal(pixels(out), pixels(photo))
    assert re.fullmatch(r"a\.png → \w+, degree \d \(level 2, \d+ %\), \d+\.\d s\n|a\.png → .+\n", text)
    assert f"(level {int(expected.decision.route.level)}, " in text


def test_instruction_and_forced_expert_decide(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    photo, report = picture(tmp_path / "a.png"), tmp_path / "r.json"
    results = []
    for options in ("", "--task desnow", "--task dejpeg derain", "--expert 1-3", "--expert 0-0"):
        extra = options.split()
        code, text, _ = run("restore", photo, "-o", tmp_path / "out/", "--report", report, *extra)
        assert code == 0
        entry = json.loads(report.read_text())[0]
        assert sum(entry["tasks"].values()) == pytest.approx(1, abs=1e-5)
        assert sum(leaf["probability"] for leaf in entry["leaves"]) == pytest.approx(1, abs=1e-5)
        assert sum(level["probability"] for level in entry["levels"]) == pytest.approx(1, abs=1e-5)
        if "--task" in extra:
            assert {task for task, p in entry["tasks"].items() if p > 0} == set(extra[1:])
        if "--expert" in extra:
            assert entry["expert"] == extra[1]
            assert entry["forced"]
            assert "forced" in text
        results.append(pixels(tmp_path / "out/a.png"))
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[3], results[4])


def test_every_kind_of_photo_keeps_its_size(run: Run, tmp_path: Path) -> None:
    photos = tmp_path / "in"
    rotated = Image.Exif()
    rotated[274] = 6  # turn by 90 degrees
    sizes = {
        picture(photos / "one.png", 1, 1): (1, 1),
        picture(photos / "thin.png", 7, 500): (7, 500),
        picture(photos / "flat.webp", 33, 21): (33, 21),
        picture(photos / "grey.png", mode="L"): (40, 30),
        picture(photos / "alpha.png", mode="RGBA"): (40, 30),
        picture(photos / "palette.gif", mode="P"): (40, 30),
        picture(photos / "cmyk.JPG", mode="CMYK"): (40, 30),
        picture(photos / "turned.jpg", exif=rotated): (30, 40),
    }
    deep = photos / "sixteen.tif"
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(deep)
    sizes[deep] = (30, 20)
    report = tmp_path / "r.json"
    code, text, err = run("restore", photos, "-o", tmp_path / "out", "--report", report)
    assert code == 0
    assert err.startswith(f"restored {len(sizes)} of {len(sizes)} photos in ")
    assert len(text.splitlines()) == len(sizes)
    names = {path: path.name.replace(".gif", ".png") for path in sizes}
    assert files_in(tmp_path / "out") == sorted(names.values())
    for path, expected in sizes.items():
        with Image.open(tmp_path / "out" / names[path]) as image:
            assert image.size == expected
    by_input = {entry["input"]: entry["size"] for entry in json.loads(report.read_text())}
    assert by_input == {str(path): list(expected) for path, expected in sizes.items()}


def test_tiles_change_nothing_visible(run: Run, tmp_path: Path) -> None:
    photo = picture(tmp_path / "large.png", 300, 170)
    for tile in ("auto", "64", "off"):
        assert run("restore", photo, "-o", tmp_path / f"{tile}.png", "--tile", tile)[0] == 0
    whole = pixels(tmp_path / "off.png").astype(int)
    assert np.array_equal(whole, pixels(tmp_path / "auto.png"))  # smaller than the default tile
    assert np.abs(whole - pixels(tmp_path / "64.png")).max() <= 1


def test_folder_run_goes_on_past_a_bad_file(run: Run, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    picture(photos / "a.png")
    picture(photos / "z/deep/b.jpg", seed=1)
    (photos / "m").mkdir()
    (photos / "m/broken.png").write_text("not a picture")
    (photos / "notes.txt").write_text("not asked for")
    code, text, err = run("restore", photos, "-o", out, "--report", out / "report.json")
    assert code == 1
    assert files_in(out) == [JOURNAL, "a.png", "report.json", "z/deep/b.jpg"]
    assert sorted(line.split(" → ")[0] for line in text.splitlines()) == ["a.png", "z/deep/b.jpg"]
    head, *experts, first, second = err.splitlines()
    assert re.fullmatch(r"restored 2 of 3 photos in \d+\.\d s, 1 failed", head)
    assert sum(int(line.split(" by ")[0]) for line in experts) == 2
    assert first == "unirestorer: 1 of 3 photos failed:"
    assert second.startswith(f"  {photos}/m/broken.png: got ")

    entries = json.loads((out / "report.json").read_text())
    assert [entry["input"] for entry in entries] == [f"{photos}/a.png", f"{photos}/z/deep/b.jpg"]
    assert [entry["output"] for entry in entries] == [f"{out}/a.png", f"{out}/z/deep/b.jpg"]
    for entry in entries:
        assert entry["size"] == [40, 30]
        assert sum(entry["tasks"].values()) == pytest.approx(1, abs=1e-5)
        assert set(entry["seconds"]) == {"decode", "estimate", "route", "load", "restore", "save"}
        assert 0 <= entry["e_gran_percentile"] <= 100
        assert 0 <= entry["distance_percentile"] <= 100
        assert entry["device"] == "cpu"
        assert {"x", "y"} <= set(entry["map"])


@pytest.fixture
def routed_apart(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Photos go by brightness to experts 3 and 7; what happens: ("load" or "restore", expert)."""
    estimated, route = UniRestorer.estimate, UniRestorer.route
    load, call = ExpertBank._loaded, ExpertBank.__call__
    bright: list[bool] = []
    events: list[tuple[str, int]] = []

    def estimate(model: UniRestorer, x: torch.Tensor) -> object:
        bright.append(float(x.mean()) > 0.5)
        return estimated(model, x)

    def routed(model: UniRestorer, *args: object) -> object:
        return replace(route(model, *args), expert=torch.tensor([7 if bright[-1] else 3]))

    def restored(bank: ExpertBank, x: torch.Tensor, expert: torch.Tensor, **options: object) -> torch.Tensor:
        events.append(("restore", int(expert)))
        return call(bank, x, expert, **options)

    def loaded(bank: ExpertBank, expert: int, device: torch.device) -> torch.nn.Module:
        events.append(("load", expert))
        return load(bank, expert, device)

    monkeypatch.setattr(UniRestorer, "estimate", estimate)
    monkeypatch.setattr(UniRestorer, "route", routed)
    monkeypatch.setattr(ExpertBank, "__call__", restored)
    monkeypatch.setattr(ExpertBank, "_loaded", loaded)
    return events


def plain(path: Path, grey: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (grey, grey, grey)).save(path, **options)
    return path


def test_each_expert_is_loaded_once_and_the_summary_counts(
    run: Run, tmp_path: Path, routed_apart: list[tuple[str, int]]
) -> None:
    for index, grey in enumerate((40, 240, 50, 230, 60)):
        plain(tmp_path / f"in/{index}.png", grey)
    report = tmp_path / "r.json"
    code, text, err = run("restore", tmp_path / "in", "-o", tmp_path / "out", "--report", report)
    assert code == 0
    assert routed_apart == [
        *[("load", 3), ("restore", 3), ("restore", 3), ("restore", 3)],
        *[("load", 7), ("restore", 7), ("restore", 7)],
    ]
    assert [line.split(" ")[0] for line in text.splitlines()] == ["0.png", "2.png", "4.png", "1.png", "3.png"]
    entries = json.loads(report.read_text())
    assert [Path(entry["input"]).name for entry in entries] == [f"{i}.png" for i in range(5)]
    head, *rows = err.splitlines()
    assert re.fullmatch(r"restored 5 of 5 photos in \d+\.\d s", head)
    names = [f"{entries[i]['expert_name']} ({entries[i]['expert']})" for i in (0, 1)]
    assert rows == [f"  3 by {names[0]}", f"  2 by {names[1]}"]
    assert JOURNAL not in files_in(tmp_path / "out")  # nothing is left to do


def test_photos_are_read_one_ahead_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(path: Path) -> str:
        read.append(path.name)
        return path.name

    monkeypatch.setattr("unirestorer.batch.read_photo", reading)
    following = read_ahead(map(Path, "abcd"))
    for name, seen in zip("abcd", ("ab", "abc", "abcd", "abcd"), strict=True):
        path, future = next(following)
        assert (path.name, future.result()) == (name, name)
        deadline = time.monotonic() + 30
        while len(read) < len(seen) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert read == list(seen)
    assert list(following) == []
    assert list(read_ahead([])) == []


def profile_of(path: Path) -> bytes | None:
    with Image.open(path) as image:
        return image.info.get("icc_profile")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_the_colour_profile_is_kept_and_the_photo_upright(suffix: str, run: Run, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274] = 6
    photo = picture(tmp_path / f"a{suffix}", icc_profile=profile, exif=exif)
    assert run("restore", photo, "-o", tmp_path / f"b{suffix}")[0] == 0
    assert run("degrade", photo, "-o", tmp_path / f"c{suffix}", "--noise", "5")[0] == 0
    for name in "bc":
        assert profile_of(tmp_path / f"{name}{suffix}") == profile
        with Image.open(tmp_path / f"{name}{suffix}") as image:
            assert image.size == (30, 40)
            assert image.getexif().get(274, 1) == 1


def test_a_profile_of_other_colours_or_none_at_all_is_dropped(run: Run, tmp_path: Path) -> None:
    grey = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    grey[16:20] = b"GRAY"
    profiles = {"grey": bytes(grey), "rubbish": b"no profile", "none": None}
    for name, profile in profiles.items():
        mode = "L" if name == "grey" else "RGB"
        photo = picture(tmp_path / f"{name}.png", mode=mode, icc_profile=profile)
        assert run("restore", photo, "-o", tmp_path / f"out/{name}.png")[0] == 0
        assert profile_of(tmp_path / f"out/{name}.png") is None


# Interrupted folder runs


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("moment", ["noted", "written", "done"])
def test_a_killed_run_goes_on(moment: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the second photo: after its line in the journal, its temporary file, its result."""
    for index in range(4):
        picture(tmp_path / f"in/{index}.png", seed=index)
    words = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--expert", "1-3", "--report"]
    out, write, seen = tmp_path / "out", atomic_write, []

    def killed(path: Path, data: bytes, token: str) -> None:
        seen.append(path)
        if len(seen) == 2 and moment == "written":
            path.with_name(f".{token}.tmp").write_bytes(data[:99])
        if len(seen) < 2 or moment == "done":
            write(path, data, token)
        if len(seen) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("unirestorer.journal.atomic_write", killed)
        with pytest.raises(Killed):
            run(*words, tmp_path / "r.json")
    with (out / JOURNAL).open("ab") as file:
        file.write(b'{"result": "2.png", "ke')  # and while it noted the next
    before = {name: (out / name).stat().st_mtime_ns for name in files_in(out) if name.endswith(".png")}
    assert len(before) == (2 if moment == "done" else 1)

    code, text, err = run(*words, tmp_path / "r.json")
    assert code == 0
    assert err.startswith(f"restored {4 - len(before)} of 4 photos in ")
    assert f", {len(before)} kept\n" in err
    assert text.count("(kept, it was restored before)") == len(before)
    assert len(text.splitlines()) == 4
    assert files_in(out) == [f"{i}.png" for i in range(4)]  # no journal, no temporary file
    for name, time_ns in before.items():
        assert (out / name).stat().st_mtime_ns == time_ns
    entries = json.loads((tmp_path / "r.json").read_text())
    assert [Path(entry["input"]).name for entry in entries] == [f"{i}.png" for i in range(4)]
    for index in range(4):
        alone = tmp_path / f"alone{index}.png"
        run("restore", tmp_path / f"in/{index}.png", "-o", alone, "--expert", "1-3")
        assert alone.read_bytes() == (out / f"{index}.png").read_bytes()


def test_what_changed_is_restored_again(run: Run, tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / f"in/{index}.png", seed=index)
    (tmp_path / "in/z.png").write_text("broken")  # so that the journal stays
    out = tmp_path / "out"

    def again(*options: str) -> list[str]:
        code, text, _ = run("restore", tmp_path / "in", "-o", out, *options)
        assert code == 1
        return [line.split(" ")[0] for line in text.splitlines() if "kept" not in line]

    assert again("--expert", "1-3") == ["0.png", "1.png", "2.png"]
    assert again("--expert", "1-3") == []
    picture(tmp_path / "in/0.png", seed=9)  # another photo
    (out / "1.png").write_bytes((out / "1.png").read_bytes()[:-9])  # a damaged result
    (out / "2.png").unlink()  # a lost one
    assert again("--expert", "1-3") == ["0.png", "1.png", "2.png"]
    assert again("--expert", "1-2") == ["0.png", "1.png", "2.png"]
    assert again("--expert", "1-2", "--task", "derain") == ["0.png", "1.png", "2.png"]
    assert again("--expert", "1-2", "--task", "derain", "--tile", "64") == ["0.png", "1.png", "2.png"]
    with (out / JOURNAL).open("ab") as file:
        file.write(b'7\n{"entry": 3}\n{"key": [], "entry": {}}\n{"key": "0", "entry": {}}\n\xff\n')
        file.write(b"[" * 100_000 + b"\n")
    assert again("--expert", "1-2", "--task", "derain", "--tile", "64") == []  # rubbish is no line of ours


def test_two_runs_do_not_share_a_folder(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).touch()
    other = Journal(tmp_path / "out", [])
    assert_refused(run("restore", tmp_path / "in", "-o", tmp_path / "out"), "another run writes to")
    other.close(complete=True)
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out")[0] == 0


def test_results_inside_the_folder_are_no_inputs(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for _ in range(2):
        code, text, _ = run("restore", tmp_path, "-o", tmp_path / "restored")
        assert (code, len(text.splitlines())) == (0, 1)
    assert files_in(tmp_path) == ["a.png", "restored/a.png"]
    code, _, _ = run("inspect", tmp_path / "restored", tmp_path / "a.png")
    assert code == 0
    (tmp_path / "a.png").unlink()
    assert_refused(run("restore", tmp_path, "-o", tmp_path / "restored"), "no photos but those in")


def test_a_photo_named_twice_is_restored_once(run: Run, tmp_path: Path) -> None:
    photo = picture(tmp_path / "in/a.png")
    code, text, _ = run("restore", photo, photo.parent, photo, "-o", tmp_path / "out")
    assert (code, len(text.splitlines())) == (0, 1)


def test_names_need_not_be_text(run: Run, tmp_path: Path) -> None:
    try:
        photo = picture(tmp_path / "in" / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system has only valid names")
    code, text, _ = run("restore", photo, "-o", tmp_path / "out", "--report", tmp_path / "r.json")
    assert code == 0
    assert "→" in text
    assert json.loads((tmp_path / "r.json").read_text())[0]["input"] == str(photo)


@pytest.mark.parametrize(
    ("inputs", "output", "expected"),
    [
        ("a.png", "b.jpg", "b.jpg"),
        ("a.png", "out", "out/a.png"),
        ("a.png", "v1.2/", "v1.2/a.png"),
        ("a.png", "here.png", "here.png/a.png"),  # a folder of this name exists
        ("a.JPG", "out", "out/a.JPG"),
        ("a.gif", "out", "out/a.png"),
        ("a.photo", "out", "out/a.png"),
        ("a.png", "b.gif", None),
        ("a.png", "b.txt", None),
        ("a.png b.png", "out", "out/a.png out/b.png"),
        ("a.png b.png", "v1.2", "v1.2/a.png v1.2/b.png"),
        ("a.png b.png", "c.png", None),
        ("a.gif a.png", "out", None),
    ],
)
def test_where_results_go(
    inputs: str, output: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.png").mkdir()
    photos = {Path(name): Path(name) for name in inputs.split()}
    if expected is None:
        with pytest.raises(ValueError, match=r"folder|one by one"):
            find_targets(photos, inputs.split(), output)
    else:
        targets = find_targets(photos, inputs.split(), output)
        assert list(targets.values()) == [Path(name) for name in expected.split()]


# Bad input


def bomb(path: Path, width: int = 20_000, height: int = 10_000) -> None:
    """A PNG that promises 200 megapixels."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ("restore a.png -o out --task fog", ["unknown task 'fog'", *Task]),
        ("restore a.png -o out --task derain Rain", ["unknown task 'Rain'"]),
        ("restore a.png -o out --expert 3-0", ["unknown expert '3-0'", "2-18"]),
        ("restore a.png -o out --expert rain", ["unknown expert 'rain'"]),
        ("restore a.png -o out --tile 10", ["--tile", "64", "'10'"]),
        ("restore a.png -o out --tile some", ["--tile", "'some'"]),
        ("restore a.png -o out --device tpu", ["--device", "cpu"]),
        ("restore a.png -o out --exp 1-3", ["unrecognized"]),  # options are not abbreviated
        ("restore a.png", ["-o"]),
        ("restore missing.png -o out", ["missing.png: no such file"]),
        ("restore a.png missing.png -o out", ["missing.png: no such file"]),
        ("restore empty -o out", ["empty", "no image"]),
        ("restore text.png -o out", ["text.png: got no readable image"]),
        ("restore void.png -o out", ["void.png: got an empty file"]),
        ("restore cut.png -o out", ["cut.png: got a damaged or truncated image"]),
        ("restore bomb.png -o out", ["bomb.png: got over 100 megapixels"]),
        ("restore a.png -o b.xyz", ["b.xyz", ".png"]),
        ("restore a.png b.gif -o b.png", ["b.png", "folder"]),
        ("restore sub -o sub", ["sub/a.png is an input"]),
        ("restore a.png -o ./a.png", ["a.png is an input"]),
        ("restore a.png -o linked.png", ["linked.png is an input"]),
        ("restore a.png sub -o out", ["one by one", "a.png"]),
        ("restore a.png -o out --report a.png", ["a.png is an input"]),
        ("restore a.png -o out.png --report out.png", ["written twice"]),
        ("restore a.png -o out.png --report sub", ["sub is a folder"]),  # said only when all was restored
        ("degrade a.png -o out.png --noise 5 --save-recipe sub", ["sub is a folder"]),
        ("inspect text.png", ["text.png: got no readable image"]),
        ("inspect a.png --task fog", ["unknown task 'fog'"]),
        ("degrade a.png -o out", ["--rain"]),
        ("degrade a.png -o out --rain wet", ["--rain wet", "light, medium, heavy"]),
        ("degrade a.png -o out --blur medium", ["--blur medium", "mild, strong"]),
        ("degrade a.png -o out --rain 1000", ["rain.streaks", "0 to 400"]),
        ("degrade a.png -o out --noise -1", ["noise.sigma_8bit"]),
        ("degrade a.png -o out --jpeg nan", ["--jpeg nan"]),
        ("degrade a.png -o out --jpeg 0", ["jpeg.quality"]),
        ("degrade a.png -o out --haze 1e999", ["--haze 1e999"]),
        ("degrade a.png -o out --noise 5 --seed -3", ["--seed"]),
        ("degrade a.png -o a.png --noise 5", ["a.png is an input"]),
        ("degrade text.png -o out --noise 5", ["text.png"]),
        ("degrade a.png -o out --recipe none.json", ["none.json"]),
        ("degrade a.png -o out --recipe text.png", ["text.png: the recipe is not JSON"]),
        ("degrade a.png -o out --recipe cut.png", ["cut.png"]),
        ("degrade a.png -o out --recipe kind.json", ["kind.json", "needs a kind", "motion_blur"]),
        ("degrade a.png -o out --recipe real.json", ["real.json", "real rain"]),
        ("degrade a.png -o out --recipe good.json --rain 5", ["--recipe"]),
        ("degrade a.png -o out --recipe good.json --save-recipe good.json", ["good.json is an input"]),
        ("verify missing", ["no checkpoint 'missing'"]),
        ("verify empty", ["empty is no checkpoint"]),
        ("polish a.png", ["polish"]),
    ],
)
def test_bad_input_is_one_line(
    words: str, fragments: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(Path("a.png"))
    picture(Path("b.gif"), mode="P")
    picture(Path("sub/a.png"))
    Path("linked.png").symlink_to("a.png")
    Path("empty").mkdir()
    Path("text.png").write_text("hello")
    Path("void.png").touch()
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:-60])
    bomb(Path("bomb.png"))
    Path("kind.json").write_text('{"steps": [{"kind": "fog"}]}')
    Path("real.json").write_text('{"steps": [{"kind": "rain", "streaks": 80, "real": true}]}')
    Path("good.json").write_text('{"seed": 3, "steps": [{"kind": "noise", "sigma_8bit": 25}]}')
    before = {name: Path(name).read_bytes() for name in files_in(tmp_path)}
    assert_refused(run(*words.split()), *fragments)
    assert {name: Path(name).read_bytes() for name in files_in(tmp_path)} == before


@pytest.mark.parametrize("command", ["restore", "inspect", "verify"])
@pytest.mark.parametrize(
    ("config", "fragment"),
    [(None, "no config.json"), ("{", "damaged"), ("[]", "'list'"), ('{"format": "other/9"}', "'other/9'")],
)
def test_bad_checkpoint_is_one_line(
    command: str, config: str | None, fragment: str, run: Run, tmp_path: Path
) -> None:
    photo, folder = picture(tmp_path / "a.png"), tmp_path / "model"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config)
    words = {"restore": [photo, "-o", tmp_path / "b.png"], "inspect": [photo], "verify": [folder]}
    assert_refused(run(command, *words[command], checkpoint=folder), str(folder), fragment)


def test_hub_id_out_of_reach_is_one_line(run: Run, tmp_path: Path) -> None:
    photo, name = picture(tmp_path / "a.png"), "nobody/nothing-of-this-name"
    assert_refused(run("inspect", photo, checkpoint=name), name)


@pytest.fixture
def damaged(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "damaged"))


@pytest.mark.parametrize(
    "part", ["extractor.safetensors", "router.safetensors", "experts/1-3.safetensors", "map.npz"]
)
def test_flipped_byte_is_named(part: str, run: Run, damaged: Path, tmp_path: Path) -> None:
    data = bytearray((damaged / part).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / part).write_bytes(data)
    picture(tmp_path / "in/a.png")
    words = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--expert", "1-3"]
    assert_refused(run(*words, checkpoint=damaged), part, "SHA-256")  # a folder run ends, too
    assert_refused(run("verify", damaged), part, "SHA-256")
    assert not (tmp_path / "out").exists()


def test_missing_expert_file_is_named(run: Run, damaged: Path, tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png")
    (damaged / "experts/2-18.safetensors").unlink()
    words = ["restore", photo, "-o", tmp_path / "b.png", "--expert"]
    assert_refused(run(*words, "2-18", checkpoint=damaged), "2-18.safetensors")
    assert run(*words, "2-17", checkpoint=damaged)[0] == 0


def test_instruction_that_prunes_everything_is_one_line(run: Run, damaged: Path, tmp_path: Path) -> None:
    tree = Checkpoint(damaged).tree()
    known = tuple({frozenset({Task.DERAIN}): 1} for _ in tree.task_sets)
    add_tree(damaged, DegradationTree(tree.centers, tree.parents, known, tree.names), {})
    photo = picture(tmp_path / "a.png")
    for words in (["restore", photo, "-o", tmp_path / "b.png"], ["inspect", photo]):
        assert_refused(run(*words, "--task", "desnow", checkpoint=damaged), "no expert for desnow")
        assert run(*words, "--task", "derain", checkpoint=damaged)[0] == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("target", ["old.png", "old.json"])
@pytest.mark.parametrize("command", ["restore", "degrade"])
def test_old_file_survives_a_full_disk(
    number: int, target: str, command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = picture(tmp_path / "a.png")
    (tmp_path / target).write_text("old")
    if target == "old.png":
        tail = ["-o", tmp_path / target]
    else:
        option = "--report" if command == "restore" else "--save-recipe"
        tail = ["-o", tmp_path / "new.png", option, tmp_path / target]
    replace = os.replace

    def full(source: str | Path, destination: str | Path) -> None:
        if Path(destination).name == target:
            raise OSError(number, os.strerror(number))
        replace(source, destination)

    monkeypatch.setattr("unirestorer.files.os.replace", full)
    code, _, err = run(command, photo, *tail, *(["--noise", "25"] if command == "degrade" else []))
    assert code == 2
    assert err == f"unirestorer: cannot write {tmp_path / target}: {os.strerror(number)}\n"
    assert (tmp_path / target).read_text() == "old"
    assert set(files_in(tmp_path)) <= {"a.png", "new.png", target}


def test_full_disk_ends_a_folder_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        picture(tmp_path / f"in/{index}.png")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("unirestorer.files.os.fsync", full)
    outcome = run("degrade", tmp_path / "in", "-o", tmp_path / "out", "--noise", "5")
    assert_refused(outcome, f"cannot write {tmp_path / 'out/0.png'}: No space left")
    assert files_in(tmp_path / "out") == []


def test_file_in_the_place_of_the_folder(run: Run, tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png")
    (tmp_path / "out").write_text("a file")
    assert_refused(run("degrade", photo, "-o", tmp_path / "out", "--noise", "5"), "cannot write")
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize(
    "message",
    ["CUDA out of memory.", "DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED"],
)
def test_photo_too_large_for_the_memory(
    message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(ExpertBank, "__call__", out_of_memory)
    outcome = run("restore", picture(tmp_path / "a.png"), "-o", tmp_path / "b.png")
    assert_refused(outcome, "a.png: not enough memory", "smaller tiles")


def test_smaller_tiles_for_want_of_memory_are_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_only(network: object, x: torch.Tensor, device: object, tile_px: int, *others: object) -> object:
        if tile_px > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return pass_(network, x, device, tile_px, *others)

    pass_ = experts._run
    monkeypatch.setattr(experts, "_run", small_only)
    code, _, err = run("restore", picture(tmp_path / "a.png", 160, 90), "-o", tmp_path / "b.png")
    assert (code, err) == (0, "cpu: out of memory: trying tiles of 80 px\n")
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (160, 90)


def test_other_failures_are_not_hidden(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(ExpertBank, "__call__", defect)
    with pytest.raises(RuntimeError, match="a defect of ours"):
        run("restore", picture(tmp_path / "a.png"), "-o", tmp_path / "b.png")


def test_interrupt_leaves_nothing_half_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unirestorer.files.os.fsync", interrupt)
    photo = picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("old")
    assert run("restore", photo, "-o", tmp_path / "b.png") == (130, "", "unirestorer: interrupted\n")
    assert files_in(tmp_path) == ["a.png", "b.png"]
    assert (tmp_path / "b.png").read_text() == "old"


def start(*words: object, **options: object) -> subprocess.Popen[str]:
    """A process that Ctrl-C reaches, even if the tests run in a shell's background, where it is ignored."""
    argv = [sys.executable, "-m", "unirestorer", *map(str, words)]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(argv, cwd=ROOT, text=True, stderr=subprocess.PIPE, **options)
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    """Ctrl-C and a reader that goes away, as the shell sees them; side by side to save time."""
    first = picture(tmp_path / "in/0.png", 200, 150)
    for index in range(1, 300):
        os.link(first, first.with_stem(str(index)))
    many = ["degrade", tmp_path / "in", "--snow", "heavy", "-o"]
    interrupted = start(*many, tmp_path / "a", stdout=subprocess.PIPE)
    reading, writing = os.pipe()
    os.close(reading)
    unread = start("degrade", first, *many[2:], tmp_path / "b", stdout=writing)
    os.close(writing)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("a/*.png")) and interrupted.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    interrupted.send_signal(signal.SIGINT)
    _, err = interrupted.communicate(timeout=60)
    assert (interrupted.returncode, err) == (130, "unirestorer: interrupted\n")
    assert 0 < len(files_in(tmp_path / "a")) < 300
    assert not [name for name in files_in(tmp_path / "a") if name.endswith(".tmp")]

    _, err = unread.communicate(timeout=60)
    assert (unread.returncode, err) == (1, "")


def test_a_folder_run_survives_kill_9(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A second run keeps what the killed one finished, and nothing is lost, half-written or left behind."""
    first = picture(tmp_path / "in/0.png", 200, 150)
    for index in range(1, 60):
        os.link(first, first.with_stem(str(index)))
    out = tmp_path / "out"
    words = ["restore", tmp_path / "in", "-o", out, "--expert", "1-3"]
    process = start(*words, "--checkpoint", tiny_checkpoint, "--device", "cpu", stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.png"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 3 <= len(before) < 60

    code, text, err = run(*words)
    assert code == 0
    assert text.count("(kept, it was restored before)") == len(before)
    assert err.startswith(f"restored {60 - len(before)} of 60 photos in ")
    assert files_in(out) == sorted(f"{index}.png" for index in range(60))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len({path.read_bytes() for path in out.iterdir()}) == 1  # one photo under sixty names


# Inspect


def test_inspect_in_words_and_as_data(run: Run, tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png")
    code, text, err = run("inspect", photo)
    assert (code, err) == (0, "")
    code, out, _ = run("inspect", photo, "--json")
    assert code == 0
    (data,) = json.loads(out)
    assert data["input"] == str(photo)
    assert data["size"] == [40, 30]
    assert not data["forced"]
    lines = text.splitlines()
    assert lines[0] == f"{photo}, 40 x 30 px"
    heads = " ".join(line.split()[0] for line in lines[1:])
    assert heads == "tasks captions leaf levels expert e_gran distance"
    assert data["captions"][0]["text"] in lines[2]
    assert lines[5].endswith(f"{data['expert_name']} ({data['expert']})")
    assert f"percentile {data['e_gran_percentile']:.0f}:" in lines[6]
    assert f"percentile {data['distance_percentile']:.0f}:" in lines[7]
    assert files_in(tmp_path) == ["a.png"]

    code, out, _ = run("inspect", photo, "--json", "--task", "lowlight")
    assert json.loads(out)[0]["tasks"]["lowlight"] == pytest.approx(1, abs=1e-5)


def test_inspect_goes_on_past_a_bad_file(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    (tmp_path / "a.png").touch()
    code, out, err = run("inspect", tmp_path, "--json")
    assert code == 1
    assert [Path(entry["input"]).name for entry in json.loads(out)] == ["b.png"]
    assert "1 of 2 photos failed" in err


def test_inspect_agrees_with_restore(run: Run, tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png", 400, 350)
    _, out, _ = run("inspect", photo, "--json")
    run("restore", photo, "-o", tmp_path / "b.png", "--report", tmp_path / "r.json")
    inspected, restored = json.loads(out)[0], json.loads((tmp_path / "r.json").read_text())[0]
    for key in set(inspected) - {"seconds"}:
        assert inspected[key] == restored[key], key


# Degrade


def test_degrade_is_the_recipe(run: Run, tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png")
    words = ["--jpeg", "heavy", "--rain", "medium", "--noise", "25", "--seed", "7"]
    words += ["--save-recipe", tmp_path / "r.json"]
    code, text, _ = run("degrade", photo, "-o", tmp_path / "b.png", *words)
    assert code == 0
    assert text == "a.png → medium noise and medium rain and heavy compression\n"
    recipe = Recipe.from_json((tmp_path / "r.json").read_text())
    assert recipe == compose({Task.DEJPEG: 11.5, Task.DERAIN: 75, Task.DENOISE: 25}, 7)
    assert np.array_equal(pixels(tmp_path / "b.png"), to_uint8(recipe.apply(load_image(photo))))


def test_degrade_is_deterministic(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    picture(tmp_path / "in/b/c.png", seed=1)
    every = [word for flag in STRENGTHS for word in (f"--{flag}", "light")]
    recipe, same = tmp_path / "r.json", tmp_path / "same.json"
    run("degrade", tmp_path / "in", "-o", tmp_path / "1", *every, "--save-recipe", recipe)
    run("degrade", tmp_path / "in", "-o", tmp_path / "2", *reversed_pairs(every), "--seed", "0")
    run("degrade", tmp_path / "in", "-o", tmp_path / "3", "--recipe", recipe, "--save-recipe", same)
    run("degrade", tmp_path / "in", "-o", tmp_path / "4", "--recipe", recipe, "--seed", "1")
    run("degrade", tmp_path / "in/a.png", "-o", tmp_path / "5", *every)  # alone as in a folder
    assert recipe.read_bytes() == same.read_bytes()
    for name in ("a.png", "b/c.png"):
        first = (tmp_path / "1" / name).read_bytes()
        assert first == (tmp_path / "2" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
        assert first != (tmp_path / "4" / name).read_bytes()
    assert (tmp_path / "1/a.png").read_bytes() == (tmp_path / "5/a.png").read_bytes()


def reversed_pairs(words: list[str]) -> list[str]:
    return [word for i in range(len(words) - 2, -1, -2) for word in words[i : i + 2]]


@pytest.mark.parametrize("flag", STRENGTHS)
def test_degree_words(flag: str) -> None:
    task, text = STRENGTHS[flag]
    values = degree_strengths(task)
    for index, words in enumerate(DEGREES[task][1]):
        word, value = list(values.items())[index]
        assert words.replace(" ", "-").startswith(f"{word}-")
        assert degree_words(compose({task: value}, 0).steps[0]) == words
        assert word in text  # the help knows it
    assert values["light"] == values[text.split(",")[0]]
    assert "heavy" in values
    low, high = RANGES["single"][task]["in"]
    assert f"{high:g}" in text
    assert f"{low:g}" in text or "trained to" in text


def test_degrade_goes_on_past_a_bad_file(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "in/b.gif", mode="P")
    (tmp_path / "in/a.png").write_text("hello")
    code, _, err = run("degrade", tmp_path / "in", "-o", tmp_path / "out", "--haze", "1.2")
    assert code == 1
    assert files_in(tmp_path / "out") == ["b.png"]
    assert "a.png: got no readable image" in err


# Verify


def test_verify_lists_the_parts(run: Run, tiny_checkpoint: Path) -> None:
    code, text, err = run("verify", tiny_checkpoint)
    assert (code, err) == (0, "")
    *parts, last = text.splitlines()
    assert set(parts) == {name for name in files_in(tiny_checkpoint) if name != "config.json"}
    assert len(parts) == 27 + 4
    assert last.startswith(f"{tiny_checkpoint}: all 31 parts are sound")
