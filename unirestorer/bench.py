"""What serving costs: seconds and memory per stage, routing beside restoring, growth with size and experts.

Every case runs in a new process, so that cold means cold and no case's memory is another's. Photos are drawn.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from training.build.parts import add_part, add_router, add_to_config, add_tree
from unirestorer.checkpoint import Checkpoint
from unirestorer.config import RouterShape, from_dict, to_dict
from unirestorer.experts import DEFAULT_TILE_PX
from unirestorer.files import sha256
from unirestorer.imaging import load_image, save_image
from unirestorer.pipeline import UniRestorer, choose_device
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree

STAGES = ("libraries", "open", "decode", "DR", "routing", "expert load", "expert", "encode")
EXPERTS_SIDE_PX = 256  # of the photos that several numbers of experts are compared on


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


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The kind of machine, without its name: processor or GPU, threads, system, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
        known = self._base is not None and _reset_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        peak = _peak_bytes() if known else None
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
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else None


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
    found: dict[str, Any] = {"cold": meter.stages}
    rounds = []
    for _ in range(case.repeats):
        meter.stages = {}
        _one_round(model, case, meter)
        rounds.append(meter.stages)
    found["warm"] = {
        stage: {
            "seconds": statistics.median(each[stage]["seconds"] for each in rounds),
            **{key: _largest([each[stage][key] for each in rounds]) for key in ("peak_mb", "gpu_peak_mb")},
        }
        for stage in rounds[0]
    }
    if case.batch == 1:
        found["auto"] = _auto_beside_expert(model, case)
    return found


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


def _largest(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def draw_photo(path: Path, width: int, height: int) -> None:
    """A noisy photo of soft colours."""
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
    data, shape = source.read(f"experts/{name}.safetensors"), to_dict(source.shape(name))
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
            opened.append((checkpoint, UniRestorer.from_checkpoint(checkpoint, where)))
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
            "mb_resident": _resident_bytes(model) / 1e6,
            "seconds": statistics.median(seconds[i]),
            "ratio": statistics.median(a / b for a, b in zip(seconds[i], seconds[0], strict=True)),
        }
        for i, (count, (_, model)) in enumerate(zip(counts, opened, strict=True))
    ]


def _resident_bytes(model: UniRestorer) -> int:
    modules = (model.extractor, model.router, *model.experts.warm)
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


# All of it


def run_bench(
    folder: Path,
    *,
    device: str = "auto",
    sizes: list[tuple[int, int]],
    batches: list[int],
    counts: list[int],
    tile_px: int | None = DEFAULT_TILE_PX,
    repeats: int = 3,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything, as JSON data; `sizes` are (width, height). `told` hears what comes next, once per process.

    A case that runs out of memory becomes a row with an "error". Raises ValueError for bad input.
    """
    where = choose_device(device)
    rows: list[dict[str, Any]] = []
    experts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as out:
        for width, height in sizes:
            photo = Path(out) / f"{width}x{height}.jpg"
            draw_photo(photo, width, height)
            for batch in batches:
                told(f"{width} x {height}, batch {batch}")
                row: dict[str, Any] = {"width": width, "height": height, "batch": batch}
                case = Case(folder, device, photo, batch, tile_px, repeats)
                try:
                    row |= _in_new_process(measure_case, case)
                except (BrokenProcessPool, MemoryError):
                    row["error"] = "the process was ended, probably for want of memory"
                except RuntimeError as error:
                    row["error"] = " ".join(str(error).split())[:200]
                rows.append(row)
        if counts:
            told(f"{' and '.join(map(str, counts))} experts")
            experts = _in_new_process(measure_experts, folder, device, tuple(counts), tile_px, repeats)
    return {
        "machine": describe_machine(where),
        "checkpoint": folder.name,
        "tile_px": tile_px,
        "repeats": repeats,
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
    found = {
        "megapixels": _megapixels(large) / _megapixels(small),
        "seconds": total_seconds(large["warm"]) / total_seconds(small["warm"]),
    }
    if peaks[0] and peaks[1]:
        found["peak_mb"] = peaks[1] / peaks[0]
    return found


def _megapixels(row: dict[str, Any]) -> float:
    return row["width"] * row["height"] * row["batch"] / 1e6


def total_seconds(stages: dict[str, dict[str, float]]) -> float:
    return sum(stage["seconds"] for stage in stages.values())


def peak_mb(stages: dict[str, dict[str, float | None]]) -> float | None:
    """The highest peak of all stages: the GPU's on a GPU, else the process's."""
    gpu = _largest([stage["gpu_peak_mb"] for stage in stages.values()])
    return _largest([stage["peak_mb"] for stage in stages.values()]) if gpu is None else gpu


# Words


def report(found: dict[str, Any]) -> str:
    """The data of `run_bench` as aligned tables."""
    head = ["size", "batch", "state", *STAGES]
    times, memory, failures = [[*head, "total", "per MP"]], [head], []
    for row in found["rows"]:
        name = [f"{row['width']}x{row['height']}", str(row["batch"])]
        if "error" in row:
            failures.append(f"{' batch '.join(name)}: {row['error']}")
            continue
        for state in ("cold", "warm"):
            stages = row[state]
            total = total_seconds(stages)
            seconds = [_number(stages[s]["seconds"], 3) if s in stages else "" for s in STAGES]
            times.append([*name, state, *seconds, _number(total, 3), _number(total / _megapixels(row), 3)])
            peaks = [_number(peak_mb({s: stages[s]}), 0) if s in stages else "" for s in STAGES]
            memory.append([*name, state, *peaks])
    auto = [["size", "auto", "expert alone", "ratio"]]
    auto += [
        [f"{row['width']}x{row['height']}", *(_number(value, 3) for value in row["auto"].values())]
        for row in found["rows"]
        if "auto" in row
    ]
    experts = [["experts", "MB read", "MB resident", "seconds", "ratio"]]
    experts += [
        [str(row["experts"]), *(_number(row[k], 3) for k in list(row)[1:])] for row in found["experts"]
    ]
    about = found["machine"]
    tiles = "whole photos" if found["tile_px"] is None else f"tiles of {found['tile_px']} px"
    parts = [
        f"{found['checkpoint']} on {about['device']}, {about['threads']} threads, torch {about['torch']}, "
        f"{tiles}, medians of {found['repeats']}",
        f"Seconds per stage\n{aligned(times)}",
        "Peak memory per stage, MB above the interpreter and libraries (on a GPU: allocated there)\n"
        f"{aligned(memory)}",
    ]
    if len(auto) > 1:
        parts.append(f"Auto mode beside its chosen expert alone, seconds in turns\n{aligned(auto)}")
    if found["growth"]:
        parts.append(f"From the smallest photo to the largest: {_times(found['growth'])}")
    if len(experts) > 1:
        parts.append(
            f"More experts, a photo of {EXPERTS_SIDE_PX}x{EXPERTS_SIDE_PX} whose expert is not in memory\n"
            f"{aligned(experts)}"
        )
    return "\n\n".join([*parts, *failures])


def _times(factors: dict[str, float]) -> str:
    words = {"megapixels": "pixels", "seconds": "seconds", "peak_mb": "peak memory"}
    return ", ".join(f"{value:.2f} times the {words[key]}" for key, value in factors.items())


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
