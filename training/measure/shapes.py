"""Which network shape for which task? Each is trained from scratch for the same wall time and scored on
windows of photos that no training sees.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.build.data import Corpus
from training.build.experts import Node, Trainer
from training.config import NAFNET, ExpertsConfig
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


def compare(
    corpus: Corpus,
    held_out: Corpus,
    config: ExpertsConfig,
    work: Path,
    seed: int,
    device: torch.device,
    *,
    compile: bool,
    tasks: Collection[Task] = tuple(Task),
) -> Iterator[dict[str, Any]]:
    """One row of figures per shape and task, each trained with ALL's budget; compilation is not counted.

    `seconds` is the time of one held-out window, so compare it within one run only.
    """
    for shape, network_config in SHAPES.items():
        trainer = Trainer(
            corpus,
            replace(config, network=network_config, by_node={}),
            work / "shapes" / shape,
            seed,
            device,
            compile=compile,
        )
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
                **score(network.eval(), held_out, rows, device),
            }


@torch.inference_mode()
def score(network: nn.Module, corpus: Corpus, rows: np.ndarray, device: torch.device) -> dict[str, float]:
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
