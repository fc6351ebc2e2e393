"""Which network shape, for which task, at equal wall time? Trains each from scratch and prints a table.

    python -m training.compare_shapes --data DIR --work DIR --minutes 1 --tasks denoise,lowlight --shapes
    wide,deep

Measured on windows of photos that no training sees. The clock leaves out compilation.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.data import Corpus, find_photos
from training.train_experts import Node, Trainer
from unirestorer.config import CorpusConfig, NetworkConfig, preset
from unirestorer.files import atomic_write
from unirestorer.metrics import psnr
from unirestorer.types import Task

SHAPES = {
    "wide": NetworkConfig(width=32, encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1)),
    "deep": NetworkConfig(width=24, encoder=(2, 2, 2), middle=2, decoder=(2, 2, 2)),
    "unshuffled": NetworkConfig(width=48, encoder=(1, 1), middle=4, decoder=(1, 1), unshuffle=2),
    "restormer": NetworkConfig(
        kind="restormer",
        width=16,
        encoder=(1, 1, 1),
        middle=2,
        decoder=(1, 1, 1),
        heads=(1, 2, 4, 8),
        refinement=1,
    ),
    "retinexformer": NetworkConfig(
        kind="retinexformer", width=32, encoder=(1, 2), middle=2, decoder=(2, 1), heads=(1, 2, 4)
    ),
}
STOP_CORPUS = CorpusConfig(recipes=12, photos_per_recipe=3, clean=24)


@torch.no_grad()
def score(network: nn.Module, corpus: Corpus, rows: np.ndarray) -> tuple[float, float, float]:
    """Mean PSNR of the input and of the output on some windows, and seconds per window."""
    before, after, seconds = [], [], 0.0
    for row in rows:
        lq, hq = (_window(array[row]) for array in (corpus.lq, corpus.hq))
        start = time.monotonic()
        restored = network(lq).clamp(0, 1)
        seconds += time.monotonic() - start
        before.append(psnr(lq, hq)[0])
        after.append(psnr(restored, hq)[0])
    return float(np.mean(before)), float(np.mean(after)), seconds / len(rows)


def _window(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--tasks", default=",".join(Task))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    arguments = parser.parse_args()
    config = preset("small")
    corpus = Corpus.build(
        arguments.work / "corpus" / "experts",
        find_photos(arguments.data, "experts"),
        config.corpus,
        "single",
        config.seed,
    )
    held_out = Corpus.build(
        arguments.work / "corpus" / "stop",
        find_photos(arguments.data, "stop"),
        STOP_CORPUS,
        "single",
        config.seed + 1,
    )
    rows = []
    for shape in arguments.shapes.split(","):
        experts = replace(
            config.experts, network=SHAPES[shape], minutes=(arguments.minutes,) * 3, steps=(10**6,) * 3
        )
        work = arguments.work / "compare" / f"{shape}-{arguments.minutes:g}"
        trainer = Trainer(corpus, experts, work, config.seed, torch.device("cpu"), compile=True)
        for task in map(Task, arguments.tasks.split(",")):
            number = list(Task).index(task)
            node = Node(0, number, np.flatnonzero(corpus.task == number), task=task)
            _, weights, progress = trainer.train(node, None)
            network, _, _ = trainer.network(SHAPES[shape])
            network.load_state_dict(weights)
            before, after, seconds = score(
                network.eval(), held_out, np.flatnonzero(held_out.task == number)[:36]
            )
            parameters = sum(p.numel() for p in network.parameters())
            row = {"shape": shape, "task": task.value, "minutes": arguments.minutes, "parameters": parameters}
            measured = {"input_psnr": before, "psnr": after, "seconds_256": seconds}
            rows.append({**row, "steps": progress.step, **measured})
            print(json.dumps(rows[-1]), flush=True)  # noqa: T201 - the script's output
            network.train()
            data = json.dumps(rows, indent=1).encode()
            target = (
                arguments.work
                / "compare"
                / f"{arguments.shapes.replace(',', '-')}-{arguments.minutes:g}.json"
            )
            atomic_write(target, lambda file, data=data: file.write(data))


if __name__ == "__main__":
    main()
