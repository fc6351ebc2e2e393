"""Experts: one network per node of the tree, l1 loss (Eq. 5), each started from its parent's weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from training.data import Corpus
from training.loop import Budget, Progress, half_precision, train
from unirestorer.config import ExpertsConfig, NetworkConfig
from unirestorer.networks import build_network
from unirestorer.tree import DegradationTree
from unirestorer.types import Task


@dataclass(frozen=True)
class Node:
    """One expert to train: its place in the tree, its rows of the corpus and its parent."""

    level: int
    index: int
    rows: np.ndarray                        # rows of the corpus that belong to it
    parent: str = ""                        # "level-index", empty for ALL
    task: Task | None = None                # the task of all its rows, where there is one

    @property
    def name(self) -> str:
        return f"{self.level}-{self.index}"


def nodes_of(tree: DegradationTree, leaf: np.ndarray, corpus: Corpus) -> list[Node]:
    """The nodes of a tree with their rows of the corpus, in training order (parents first); `leaf` (recipes,)
    holds each recipe's leaf.
    """
    row_leaf = np.where(corpus.recipe >= 0, leaf[corpus.recipe], -1)
    table = tree.expert_table.numpy()
    nodes = []
    for number, name in enumerate(tree.expert_names):
        level, index = tree.level_of(number)
        rows = np.flatnonzero(np.isin(row_leaf, np.flatnonzero((table == number).any(1))))
        tasks = set(corpus.task[rows].tolist())
        task = list(Task)[tasks.pop()] if len(tasks) == 1 and min(tasks) >= 0 else None
        parent = f"{level - 1}-{int(tree.parents[level][index])}" if level else ""
        nodes.append(Node(level, index, rows, parent, task))
        assert nodes[-1].name == name
    return nodes


def network_for(node: Node, config: ExpertsConfig) -> NetworkConfig:
    """The node's shape: by its name, else by its task, else the common one."""
    by_task = config.by_node.get(node.task.value) if node.task else None
    return config.by_node.get(node.name) or by_task or config.network


def pixel_loss(network: Callable[[Tensor], Tensor], lq: Tensor, hq: Tensor) -> Tensor:
    """Eq. 5: mean absolute error, the network in bfloat16 where that is faster."""
    with half_precision(lq.device):
        restored = network(lq)
    return F.l1_loss(restored.float(), hq)


def batches(
    corpus: Corpus, rows: np.ndarray, clean: np.ndarray, config: ExpertsConfig, seed: tuple[int, ...]
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Step number -> LQ and HQ (B, 3, px, px).

    A share of every batch is undegraded, so that clean photos stay clean.
    """

    def batch(step: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng((*seed, step))
        picked = rows[random.integers(len(rows), size=config.batch)]
        if len(clean):
            undegraded = random.random(config.batch) < config.clean_share
            picked = np.where(undegraded, clean[random.integers(len(clean), size=config.batch)], picked)
        return corpus.batch(picked, config.patch_px, random)

    return batch


class Trainer:
    """Trains experts one after another.

    A shape is built and compiled once and given each expert's weights in turn.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: ExpertsConfig,
        work: Path,
        seed: int,
        device: torch.device,
        *,
        compile: bool,
    ) -> None:
        self.corpus, self.config, self.work, self.seed, self.device = corpus, config, work, seed, device
        self.compile = compile
        self.clean = np.flatnonzero(corpus.recipe < 0)
        self.ready: dict[NetworkConfig, tuple[nn.Module, Callable[[Tensor], Tensor], dict[str, Tensor]]] = {}

    def network(
        self, shape: NetworkConfig
    ) -> tuple[nn.Module, Callable[[Tensor], Tensor], dict[str, Tensor]]:
        """The module of a shape, its (compiled) forward pass, and its initial weights."""
        if shape not in self.ready:
            torch.manual_seed(self.seed)
            module = build_network(shape).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            start = {key: value.clone() for key, value in module.state_dict().items()}
            forward = torch.compile(module) if self.compile else module
            self.ready[shape] = (module, forward, start)
        return self.ready[shape]

    def loaded(self, shape: NetworkConfig, weights: dict[str, Tensor]) -> nn.Module:
        """A module of its own with these weights, for use."""
        network = build_network(shape)
        network.load_state_dict(weights)
        return network.to(self.device).eval()

    def train(
        self, node: Node, origin: tuple[NetworkConfig, dict[str, Tensor]] | None, *, quiet: bool = False
    ) -> tuple[NetworkConfig, dict[str, Tensor], Progress]:
        """Train `node` from `origin`, its parent's or an earlier model's (shape, weights), where the shapes
        agree; returns shape, weights and progress.

        Raises ValueError when the node has no rows.
        """
        if len(node.rows) == 0:
            raise ValueError(f"expert {node.name} has no training samples: lower tree.levels or add photos")
        config, shape = self.config, network_for(node, self.config)
        module, forward, start = self.network(shape)
        warm = origin is not None and origin[0] == shape
        module.load_state_dict(origin[1] if origin and warm else start)
        depth = node.level if warm or node.level == 0 else 0
        budget = Budget(
            config.steps[node.level], config.minutes[node.level], config.lr[depth], ema=config.ema
        )
        batch = batches(self.corpus, node.rows, self.clean, config, (self.seed, node.level, node.index))

        def loss_at(step: int) -> Tensor:
            lq, hq = batch(step)
            return pixel_loss(forward, lq.to(self.device), hq.to(self.device))

        writer = SummaryWriter(str(self.work / "tensorboard"))
        state = self.work / "experts" / f"{node.name}.state.safetensors"
        progress = train(f"expert {node.name}", module, loss_at, budget, state, writer, quiet=quiet)
        writer.close()
        weights = {key: value.detach().clone() for key, value in module.state_dict().items()}
        return shape, weights, progress
