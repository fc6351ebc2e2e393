"""What routing costs beside restoring: parameters, memory of the weights, FLOPs and time of each part of a
model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from training.measure.evaluate import machine, store
from unirestorer.bench import timed
from unirestorer.checkpoint import find_checkpoint
from unirestorer.pipeline import UniRestorer

SIDE_PX = 512
REPEATS = 7


@torch.inference_mode()
def measure_overhead(
    model: UniRestorer, side_px: int = SIDE_PX, repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """Rows {part, parameters, megabytes, gflops, seconds} for a photo of `side_px` squared: extractor, heads
    and routers, one expert, and every expert, as it were without routing.

    Times are medians over `repeats` rounds in which the parts take turns, so that a busy machine slows all of
    them alike; compare them within one run only. One expert stands for all where the shapes agree: the row
    named "every expert" multiplies by their count.
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
    for _ in tqdm(range(repeats + 1), desc="overhead", unit="round"):
        for name, (_, work) in parts.items():
            seconds[name].append(timed(work, model.device))
    rows = [
        {
            "part": name,
            "parameters": sum(p.numel() for p in module.parameters()),
            "megabytes": round(sum(t.nbytes for t in _tensors(module)) / 1e6, 2),
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


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `overhead` on a command line."""
    parser.add_argument("--checkpoint", required=True, help="folder, name in checkpoints/ or hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, and store in the checkpoint's metrics.json. Raises ValueError for bad input."""
    folder = find_checkpoint(arguments.checkpoint)
    model = UniRestorer.from_pretrained(folder, device=arguments.device)
    rows = measure_overhead(model)
    for row in rows:
        share = row["seconds"] / rows[2]["seconds"]
        sys.stdout.write(f"{row['part']}: {row['gflops']} GFLOPs, {share:.2f} of the chosen expert's time\n")
    store(
        folder / "metrics.json", "overhead", {"about": {**machine(model), "side_px": SIDE_PX}, "rows": rows}
    )
