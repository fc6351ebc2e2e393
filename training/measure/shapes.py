"""Network shapes side by side, per task: trained from scratch for the same wall time.

Each has ALL's budget and is measured on windows of photos that no training sees.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from training.build import stages
from training.build.data import Corpus
from training.build.experts import Node, Trainer
from training.build.stages import Run, make_run, say
from training.config import NAFNET
from training.measure.evaluate import store
from unirestorer.config import NetworkShape, RestormerShape, RetinexFormerShape
from unirestorer.imaging import from_uint8
from unirestorer.metrics import psnr
from unirestorer.types import Task

SHAPES: dict[str, NetworkShape] = {
    "wide": NAFNET,
    "deep": replace(NAFNET, width=24, encoder=(2, 2, 2), middle=2, decoder=(2, 2, 2)),
    "unshuffled": replace(NAFNET, width=48, encoder=(1, 1), middle=4, decoder=(1, 1), unshuffle=2),
    "restormer": RestormerShape(
        width=16, encoder=(1, 1, 1), middle=2, decoder=(1, 1, 1), heads=(1, 2, 4, 8), refinement=1
    ),
    "retinexformer": RetinexFormerShape(width=32, encoder=(1, 2), middle=2, decoder=(2, 1), heads=(1, 2, 4)),
}
WINDOWS = 36  # held-out windows per task


def compare_shapes(training_run: Run, tasks: Collection[Task]) -> Iterator[dict[str, Any]]:
    """One row of figures per shape and task, each trained with ALL's budget; compilation is not counted.

    `seconds` is the time of one held-out window, so compare it within one run only.
    """
    corpus, held_out = training_run.corpus, training_run.held_out("in")
    device = training_run.device
    for shape, network_config in SHAPES.items():
        config = replace(training_run.config.experts, network=network_config, by_node={})
        work, seed = training_run.work / "shapes" / shape, training_run.config.seed
        trainer = Trainer(corpus, config, work, seed, device, compile=training_run.compile)
        network, _, _ = trainer.network(network_config)
        for number, task in enumerate(Task):
            if task not in tasks:
                continue
            rows = np.flatnonzero(held_out.task == number)[:WINDOWS]
            node = Node(0, number, np.flatnonzero(corpus.task == number), task=task)
            if len(rows) == 0 or len(node.rows) == 0:
                continue
            _, weights, progress = trainer.train(node, None)
            network.load_state_dict(weights)
            yield {
                "shape": shape,
                "task": task.value,
                "kind": network_config.kind,
                "parameters": sum(p.numel() for p in network.parameters()),
                "minutes": round(progress.seconds / 60, 2),
                "steps": progress.step,
                "windows": len(rows),
                **measure_windows(network.eval(), held_out, rows, device),
            }


@torch.inference_mode()
def measure_windows(
    network: nn.Module, corpus: Corpus, rows: np.ndarray, device: torch.device
) -> dict[str, float]:
    """Mean PSNR (dB, RGB) of input and output over some windows, and seconds per window."""
    before, after, seconds = [], [], []
    for row in rows:
        lq, hq = (from_uint8(array[[row]]).to(device) for array in (corpus.lq, corpus.hq))
        start = time.monotonic()
        restored = network(lq).clamp(0, 1)
        seconds.append(time.monotonic() - start)
        before.append(psnr(lq, hq)[0])
        after.append(psnr(restored, hq)[0])
    return {
        "input": round(float(np.mean(before)), 3),
        "psnr": round(float(np.mean(after)), 3),
        "seconds": round(float(np.median(seconds)), 4),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `shapes` on a command line: those of a run, and the tasks."""
    stages.add_arguments(parser)
    parser.add_argument(
        "--tasks", nargs="+", type=Task, default=list(Task), metavar="TASK", help="default: all"
    )


def run(arguments: argparse.Namespace) -> None:
    """Compare, print, and store in OUT/metrics.json after every row. Raises ValueError for bad input."""
    training_run = make_run(arguments)
    rows = []
    for row in compare_shapes(training_run, arguments.tasks):
        rows.append(row)
        gain = row["psnr"] - row["input"]
        say(f"{row['shape']}, {row['task']}: {gain:+.2f} dB after {row['steps']} steps")
        measured = {"about": training_run.about(), "rows": rows}
        store(training_run.out / "metrics.json", "shapes", measured)
