"""What serving a model costs: FLOPs and seconds of its parts, seconds and memory of every stage, growth.

Every case runs in a new process, so that cold means cold and no case's memory is another's. Photos are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from training.build.parts import add_part, add_router, add_to_config, add_tree
from training.measure.evaluate import store
from training.measure.machine import describe_machine
from unirestorer.batch import write_text
from unirestorer.checkpoint import Checkpoint, find_checkpoint
from unirestorer.cli import tile, whole
from unirestorer.config import RouterShape, from_dict
from unirestorer.experts import DEFAULT_TILE_PX
from unirestorer.files import sha256
from unirestorer.imaging import load_image, save_image
from unirestorer.pipeline import UniRestorer, choose_device
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree

STAGES = ("libraries", "open", "decode", "DR", "routing", "expert load", "expert", "encode")
PARTS_SIDE_PX = 512  # of the photo that the parts are compared on
PARTS_REPEATS = 7
EXPERTS_SIDE_PX = 256  # of the photo that several numbers of experts are compared on


@dataclass(frozen=True)
class Case:
    """What one process measures: a batch of photos of one size.

    `repeats` warm rounds follow the cold one; `photo` is the file that every photo of the batch is read from.
    """

    folder: Path
    device: str
    photo: Path
    batch: int
    tile_px: int | None
    repeats: int


# Measuring


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, the device's share included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class Meter:
    """Seconds and peak memory of stages, in `stages` by name: {"seconds", "peak_mb", "gpu_peak_mb"}.

    `peak_mb` is the largest resident size of the process during a stage above that of the last `rebase`,
    None where the system does not tell (it takes Linux); `gpu_peak_mb` is what PyTorch had allocated, None
    on a CPU. 1 MB = 10^6 bytes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stages: dict[str, dict[str, float | None]] = {}
        self.rebase()

    def rebase(self) -> None:
        """Count memory from the present size of the process on."""
        self._base = _peak_bytes() if _reset_peak() else None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        resettable = self._base is not None and _reset_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        peak = _peak_bytes() if resettable else None
        gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        self.stages[name] = {
            "seconds": seconds,
            "peak_mb": None if peak is None or self._base is None else (peak - self._base) / 1e6,
            "gpu_peak_mb": None if gpu is None else gpu / 1e6,
        }


def _reset_peak() -> bool:
    """Let the process's peak start anew at its present size; False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_bytes() -> int | None:
    """The process's largest resident size since the last reset."""
    match = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(match[1]) if match else None


def _bytes(*modules: nn.Module) -> int:
    """Memory of the modules' weights."""
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


# The parts of a model


@torch.inference_mode()
def measure_parts(
    model: UniRestorer, side_px: int = PARTS_SIDE_PX, repeats: int = PARTS_REPEATS
) -> list[dict[str, Any]]:
    """Rows {part, parameters, megabytes, gflops, seconds} for a photo of `side_px` squared: extractor, heads
    and routers, one expert, and every expert, as it were without routing.

    Times are medians over `repeats` rounds in which the parts take turns, so that a busy machine slows all of
    them alike; compare them within one run only. One expert stands for all where the shapes agree: the row
    named "all N experts" multiplies by their count.
    """
    x = torch.rand(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0)).to(model.device)
    e = model.extractor(x)
    expert = model.experts.network(0)
    parts: dict[str, tuple[nn.Module, Callable[[], object]]] = {
        "extractor": (model.extractor, lambda: model.extractor(x)),
        "heads and routers": (model.router, lambda: model.router.route(model.router.estimate(e))),
        "chosen expert": (expert, lambda: expert(x)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats + 1):
        for name, (_, work) in parts.items():
            seconds[name].append(timed(work, model.device))
    rows = [
        {
            "part": name,
            "parameters": sum(p.numel() for p in module.parameters()),
            "megabytes": round(_bytes(module) / 1e6, 2),
            "gflops": round(_flops(work) / 1e9, 3),
            "seconds": round(statistics.median(seconds[name][1:]), 5),  # the first round warms up
        }
        for name, (module, work) in parts.items()
    ]
    count = len(model.tree.expert_names)
    every = {key: value if key == "part" else round(value * count, 5) for key, value in rows[-1].items()}
    return [*rows, {**every, "part": f"all {count} experts"}]


def _flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# One size and batch


def measure_case(case: Case) -> dict[str, Any]:
    """Rows of stages, {"cold": ..., "warm": ...}, warm ones with the medians of seconds and largest peaks.

    A single photo is also restored in auto mode and by its chosen expert alone, in turns: "auto" holds both
    medians and the median of the paired ratios.
    """
    device = choose_device(case.device)
    meter = Meter(device)
    with meter.stage("libraries"):
        import open_clip  # noqa: F401 - what opening a checkpoint would import: no memory of ours
    meter.rebase()
    with meter.stage("open"):
        model = UniRestorer.from_pretrained(case.folder, device=case.device)
    _one_round(model, case, meter)
    row: dict[str, Any] = {"cold": meter.stages}
    rounds = []
    for _ in range(case.repeats):
        meter.stages = {}
        _one_round(model, case, meter)
        rounds.append(meter.stages)
    row["warm"] = {
        stage: {
            "seconds": statistics.median(stages[stage]["seconds"] for stages in rounds),
            **{key: _largest(stages[stage][key] for stages in rounds) for key in ("peak_mb", "gpu_peak_mb")},
        }
        for stage in rounds[0]
    }
    if case.batch == 1:
        row["auto"] = _auto_beside_expert(model, case)
    return row


@torch.inference_mode()
def _one_round(model: UniRestorer, case: Case, meter: Meter) -> None:
    """Every stage once, as the pipeline runs them; results are written in the photo's own format."""
    with meter.stage("decode"):
        x = torch.cat([load_image(case.photo) for _ in range(case.batch)])  # (B, 3, H, W)
    with meter.stage("DR"):
        e = model.extractor(x)  # (B, D)
    with meter.stage("routing"):
        route = model.route(model.router.estimate(e))
    with meter.stage("expert load"):
        for number in route.expert.unique().tolist():
            model.experts.network(number)
    with meter.stage("expert"):
        image = model.experts(x, route.expert, tile_px=case.tile_px)  # (B, 3, H, W)
    with meter.stage("encode"), tempfile.TemporaryDirectory() as folder:
        for index, restored in enumerate(image):
            save_image(restored, Path(folder) / f"{index}{case.photo.suffix}")


def _auto_beside_expert(model: UniRestorer, case: Case) -> dict[str, float]:
    x = load_image(case.photo)
    expert = model.inspect(x).route.expert
    works = (lambda: model(x, tile_px=case.tile_px), lambda: model.experts(x, expert, tile_px=case.tile_px))
    pairs = []
    for turn in range(case.repeats):
        order = (0, 1) if turn % 2 == 0 else (1, 0)  # neither always runs in the other's wake
        seconds = {index: timed(works[index], model.device) for index in order}
        pairs.append((seconds[0], seconds[1]))
    return {
        "auto_seconds": statistics.median(auto for auto, _ in pairs),
        "expert_seconds": statistics.median(alone for _, alone in pairs),
        "ratio": statistics.median(auto / alone for auto, alone in pairs),
    }


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def draw_noisy(path: Path, width: int, height: int) -> None:
    """Write a noisy photo of soft colours."""
    random = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(1, 3, 7, 9, generator=random), (height, width), mode="bilinear")
    noise = torch.randn(1, 3, 256, 256, generator=random).mul_(0.1)
    noise = noise.repeat(1, 1, -(-height // 256), -(-width // 256))[..., :height, :width]
    save_image(x.add_(noise).clamp_(0, 1), path)


# The number of experts


class CountingCheckpoint(Checkpoint):
    """A checkpoint that counts the bytes it has read."""

    bytes_read = 0

    def read(self, name: str) -> bytes:
        data = super().read(name)
        self.bytes_read += len(data)
        return data


def grow(source: Checkpoint, folder: Path, count: int) -> None:
    """Make a checkpoint of `count` experts in `folder`: the levels below the first one grow alike, centres
    and names repeat, the router's weights are random, and every expert is the same file under another name.

    Raises ValueError for a count that leaves a level empty.
    """
    tree = source.tree()
    below = [len(centers) for centers in tree.centers[1:]]
    sizes = [len(tree.centers[0]), *(round((count - len(tree.centers[0])) * k / sum(below)) for k in below)]
    sizes[-1] += count - sum(sizes)
    if min(sizes) < 1:
        raise ValueError(f"{count} experts: expected at least {tree.levels}, one for each level; give more")
    index = [torch.arange(size) % len(tree.centers[level]) for level, size in enumerate(sizes)]
    above = [1, *sizes[:-1]]
    grown = DegradationTree(
        tuple(centers[i] for centers, i in zip(tree.centers, index, strict=True)),
        tuple(torch.arange(size) % top for size, top in zip(sizes, above, strict=True)),
        tuple(tree.task_sets[i] for i in index[-1].tolist()),
        tuple(tuple(names[j] for j in i.tolist()) for names, i in zip(tree.names, index, strict=True)),
    )
    add_part(
        folder,
        "extractor.safetensors",
        source.read("extractor.safetensors"),
        {key: source.config["model"][key] for key in ("mode", "ranges", "extractor")},
        {},
    )
    add_tree(folder, grown, {})
    heads = from_dict(RouterShape, source.config["model"]["routers"], "routers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        add_router(folder, Router(grown.centers[-1].shape[1], grown.expert_table, heads).eval(), {})
    name = tree.expert_names[-1]
    data, shape = source.read(f"experts/{name}.safetensors"), asdict(source.shape(name))
    files = [f"experts/{new}.safetensors" for new in grown.expert_names]
    add_part(folder, files[0], data, {}, {})
    for file in files[1:]:
        os.link(folder / files[0], folder / file)
    add_to_config(
        folder, dict.fromkeys(files, sha256(data)), {"experts": dict.fromkeys(grown.expert_names, shape)}
    )


def measure_experts(
    folder: Path, device: str, counts: tuple[int, ...], tile_px: int | None, repeats: int
) -> list[dict[str, Any]]:
    """Rows {experts, mb_read, mb_resident, seconds, ratio} for a photo whose expert is not in memory yet.

    The models of `grow` take turns; `ratio` is the median of the times beside those of the first model in the
    same round. Read is what the photo made the model read, resident the weights in memory afterwards.
    """
    where = choose_device(device)
    random = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, EXPERTS_SIDE_PX, EXPERTS_SIDE_PX, generator=random)
    with tempfile.TemporaryDirectory() as out:
        opened = []
        for count in counts:
            grow(Checkpoint(folder), Path(out) / str(count), count)
            checkpoint = CountingCheckpoint(Path(out) / str(count))
            opened.append((checkpoint, UniRestorer(checkpoint, where)))
        seconds: list[list[float]] = [[] for _ in counts]
        read = [0 for _ in counts]
        for turn in range(repeats + 1):
            for i, (checkpoint, model) in enumerate(opened):
                model.experts.release()
                before = checkpoint.bytes_read
                taken = timed(lambda model=model: model(x, tile_px=tile_px), where)
                read[i] = checkpoint.bytes_read - before
                if turn > 0:  # the first round warms up
                    seconds[i].append(taken)
    return [
        {
            "experts": count,
            "mb_read": read[i] / 1e6,
            "mb_resident": _bytes(model.extractor, model.router, *model.experts.warm) / 1e6,
            "seconds": statistics.median(seconds[i]),
            "ratio": statistics.median(a / b for a, b in zip(seconds[i], seconds[0], strict=True)),
        }
        for i, (count, (_, model)) in enumerate(zip(counts, opened, strict=True))
    ]


# All of it


def measure_costs(
    folder: Path,
    *,
    device: str = "auto",
    sizes: list[tuple[int, int]],
    batches: list[int],
    counts: list[int],
    tile_px: int | None = DEFAULT_TILE_PX,
    repeats: int = 3,
) -> dict[str, Any]:
    """Everything, as JSON data; `sizes` are (width, height), `counts` numbers of experts.

    A case that runs out of memory becomes a row with an "error". Raises ValueError for bad input.
    """
    model = UniRestorer.from_pretrained(folder, device=device)
    rows: list[dict[str, Any]] = []
    experts: list[dict[str, Any]] = []
    cases = [(width, height, batch) for width, height in sizes for batch in batches]
    layout = "{percentage:3.0f}%|{bar:30}| {desc} [{elapsed}<{remaining}]"
    total = 1 + len(cases) + bool(counts)
    with (
        tempfile.TemporaryDirectory() as out,
        tqdm(total=total, bar_format=layout, leave=False, disable=None) as bar,
    ):
        bar.set_description_str("parts")
        parts = measure_parts(model)
        bar.update()
        for width, height, batch in cases:
            bar.set_description_str(f"{width} x {height}, batch {batch}")
            photo = Path(out) / f"{width}x{height}.jpg"
            if not photo.is_file():
                draw_noisy(photo, width, height)
            row: dict[str, Any] = {"width": width, "height": height, "batch": batch}
            case = Case(folder, device, photo, batch, tile_px, repeats)
            try:
                row |= _in_new_process(measure_case, case)
            except (MemoryError, RuntimeError) as error:  # or the process was ended, for want of memory
                row["error"] = " ".join(str(error).split())[:200]
            rows.append(row)
            bar.update()
        if counts:
            bar.set_description_str(f"{' and '.join(map(str, counts))} experts")
            experts = _in_new_process(measure_experts, folder, device, tuple(counts), tile_px, repeats)
    return {
        "machine": describe_machine(model.device),
        "checkpoint": folder.name,
        "tile_px": tile_px,
        "repeats": repeats,
        "parts": parts,
        "rows": rows,
        "growth": growth(rows),
        "experts": experts,
    }


def _in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - as `work`
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def growth(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """From the smallest to the largest photo, one at a time and warm: {megapixels, seconds, peak_mb}, as
    factors; None where there are not two.
    """
    alone = [row for row in rows if row["batch"] == 1 and "error" not in row]
    alone.sort(key=_megapixels)
    if len(alone) < 2:
        return None
    small, large = alone[0], alone[-1]
    peaks = [peak_mb(row["warm"]) for row in (small, large)]
    factors = {
        "megapixels": _megapixels(large) / _megapixels(small),
        "seconds": total_seconds(large["warm"]) / total_seconds(small["warm"]),
    }
    if peaks[0] and peaks[1]:
        factors["peak_mb"] = peaks[1] / peaks[0]
    return factors


def _megapixels(row: dict[str, Any]) -> float:
    return row["width"] * row["height"] * row["batch"] / 1e6


def total_seconds(stages: dict[str, dict[str, float]]) -> float:
    return sum(stage["seconds"] for stage in stages.values())


def peak_mb(stages: dict[str, dict[str, float | None]]) -> float | None:
    """The highest peak of all stages: the GPU's on a GPU, else the process's."""
    gpu = _largest(stage["gpu_peak_mb"] for stage in stages.values())
    return _largest(stage["peak_mb"] for stage in stages.values()) if gpu is None else gpu


# Words


Table = tuple[str, list[list[str]]]  # title, and rows with the head first


def as_text(costs: dict[str, Any]) -> str:
    """The data of `measure_costs` as aligned tables."""
    machine, rows = costs["machine"], [row for row in costs["rows"] if "error" not in row]
    tiles = "whole photos" if costs["tile_px"] is None else f"tiles of {costs['tile_px']} px"
    texts = [
        f"{costs['checkpoint']} on {machine['device']}, {machine['threads']} threads, "
        f"torch {machine['torch']}, {tiles}, medians of {costs['repeats']}"
    ]
    for title, table in (_parts(costs["parts"]), *_stages(rows), _auto(rows), _experts(costs["experts"])):
        if len(table) > 1:
            texts.append(f"{title}\n{aligned(table)}")
    if costs["growth"]:
        words = {"megapixels": "pixels", "seconds": "seconds", "peak_mb": "peak memory"}
        factors = (f"{factor:.2f} times the {words[key]}" for key, factor in costs["growth"].items())
        texts.append(f"From the smallest photo to the largest: {', '.join(factors)}")
    texts += [f"{_size(row)} batch {row['batch']}: {row['error']}" for row in costs["rows"] if "error" in row]
    return "\n\n".join(texts)


def _parts(rows: list[dict[str, Any]]) -> Table:
    chosen = next(row["seconds"] for row in rows if row["part"] == "chosen expert")
    body = [
        [
            row["part"],
            f"{row['parameters'] / 1e6:.2f} M",
            *(f"{row[key]:.2f}" for key in ("megabytes", "gflops")),
            f"{row['seconds'] / chosen:.2f}",
        ]
        for row in rows
    ]
    title = f"Parts, a photo of {PARTS_SIDE_PX}x{PARTS_SIDE_PX}, seconds beside the chosen expert's"
    return title, [["part", "parameters", "MB", "GFLOPs", "seconds"], *body]


def _stages(rows: list[dict[str, Any]]) -> tuple[Table, Table]:
    """Seconds, and peak memory, of every stage."""
    head = ["size", "batch", "state", *STAGES]
    times, memory = [[*head, "total", "per MP"]], [head]
    for row, state in ((row, state) for row in rows for state in ("cold", "warm")):
        stages, names = row[state], [_size(row), str(row["batch"]), state]
        total = total_seconds(stages)
        seconds = [_number(stages[s]["seconds"], 3) if s in stages else "" for s in STAGES]
        times.append([*names, *seconds, _number(total, 3), _number(total / _megapixels(row), 3)])
        memory.append([*names, *(_number(peak_mb({s: stages[s]}), 0) if s in stages else "" for s in STAGES)])
    title = "Peak memory per stage, MB above the interpreter and libraries (on a GPU: allocated there)"
    return ("Seconds per stage", times), (title, memory)


def _auto(rows: list[dict[str, Any]]) -> Table:
    body = [
        [_size(row), *(_number(value, 3) for value in row["auto"].values())] for row in rows if "auto" in row
    ]
    title = "Auto mode beside its chosen expert alone, seconds in turns"
    return title, [["size", "auto", "expert alone", "ratio"], *body]


def _experts(rows: list[dict[str, Any]]) -> Table:
    body = [[str(row["experts"]), *(_number(row[key], 3) for key in list(row)[1:])] for row in rows]
    title = f"More experts, a photo of {EXPERTS_SIDE_PX}x{EXPERTS_SIDE_PX} whose expert is not in memory"
    return title, [["experts", "MB read", "MB resident", "seconds", "ratio"], *body]


def _size(row: dict[str, Any]) -> str:
    return f"{row['width']}x{row['height']}"


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def aligned(rows: list[list[str]]) -> str:
    """Rows of one length as a table for a terminal, all columns but the first flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join(lines)


# The command line


def photo_size(text: str) -> tuple[int, int]:
    """The argument of `--sizes`: (width, height)."""
    sides = text.lower().split("x")
    width, height = (sides * 2)[:2] if len(sides) in (1, 2) else ("", "")
    if not all(side.isdecimal() and 1 <= int(side) <= 10_000 for side in (width, height)):
        raise argparse.ArgumentTypeError(f"expected a side or WxH of 1 to 10000 pixels, got {text!r}")
    return int(width), int(height)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `costs` on a command line."""
    parser.add_argument("--checkpoint", required=True, help="folder, name in checkpoints/ or hub id")
    parser.add_argument(
        "--sizes",
        nargs="*",
        type=photo_size,
        default=[(256, 256), (512, 512), (1024, 1024)],
        metavar="N|WxH",
        help="photos' sides in pixels; none: leave the stages out (default: 256 512 1024)",
    )
    parser.add_argument(
        "--batch", nargs="+", type=whole(1, 1024), default=[1, 16], metavar="N", help="(default: 1 16)"
    )
    parser.add_argument(
        "--experts",
        nargs="*",
        type=whole(2, 10_000),
        default=[27, 270],
        metavar="N",
        help="numbers of experts to compare, of random routers; none: leave that out (default: 27 270)",
    )
    parser.add_argument(
        "--repeats", type=whole(1, 1000), default=3, metavar="N", help="warm rounds (default: %(default)s)"
    )
    parser.add_argument(
        "--tile",
        type=tile,
        default="auto",
        metavar="auto|N|off",
        help="as for restore (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, unrounded")
    parser.add_argument("--out", type=Path, help="metrics.json for the parts; default the checkpoint's own")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, and store the parts in metrics.json.

    Raises ValueError for bad input and SystemExit when a case failed, after the others.
    """
    folder = find_checkpoint(arguments.checkpoint)
    if arguments.json and arguments.json.is_dir():
        raise ValueError(f"{arguments.json} is a folder: name a file")
    costs = measure_costs(
        folder,
        device=arguments.device,
        sizes=arguments.sizes,
        batches=arguments.batch,
        counts=arguments.experts,
        tile_px=DEFAULT_TILE_PX if arguments.tile == "auto" else arguments.tile,
        repeats=arguments.repeats,
    )
    sys.stdout.write(f"{as_text(costs)}\n")
    about = {**costs["machine"], "side_px": PARTS_SIDE_PX}
    store(arguments.out or folder / "metrics.json", "overhead", {"about": about, "rows": costs["parts"]})
    if arguments.json:
        write_text(arguments.json, json.dumps(costs, indent=1))
    if any("error" in row for row in costs["rows"]):
        raise SystemExit(1)
