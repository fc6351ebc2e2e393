"""Experts: one network per node of the tree, l1 loss (Eq. 5), each started from its parent's weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.tensorboard import SummaryWriter

from training.build.data import Corpus, draw_fade, fade
from training.build.loop import Budget, Learner, Progress, half_precision, train
from training.build.side_by_side import CHUNK, Lane
from training.config import ExpertsConfig
from unirestorer.config import NAFNetShape, NetworkShape
from unirestorer.networks import build_network
from unirestorer.tree import DegradationTree
from unirestorer.types import Task

Origin = tuple[NetworkShape, dict[str, Tensor]]  # where an expert starts: a shape and its weights
Trained = tuple[NetworkShape, dict[str, Tensor], Progress]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Node:
    """One expert to train: its place in the tree, its rows of the corpus and its parent."""

    level: int
    index: int
    rows: np.ndarray  # rows of the corpus that belong to it
    parent: str = ""  # "level-index", empty for ALL
    task: Task | None = None  # the task of all its rows, where there is one

    @property
    def name(self) -> str:
        return f"{self.level}-{self.index}"


def nodes_of(tree: DegradationTree, leaf: np.ndarray, corpus: Corpus, e: Tensor | None = None) -> list[Node]:
    """The nodes of a tree with their rows of the corpus, in training order (parents first); `leaf` (recipes,)
    holds each recipe's leaf.

    With the rows' DRs e (N, D) a row also belongs to the leaf nearest to its own DR, whatever its recipe:
    photos that look alike to the extractor will be sent there, so its expert should know them.
    """
    degraded = corpus.recipe >= 0
    row_leaf = np.where(degraded, leaf[corpus.recipe], -1)
    near_leaf = row_leaf if e is None else np.where(degraded, tree.nearest_leaf(e).numpy(), -1)
    table = tree.expert_table.numpy()
    nodes = []
    for number, name in enumerate(tree.expert_names):
        level, index = tree.level_of(number)
        leaves = np.flatnonzero((table == number).any(1))
        rows = np.flatnonzero(np.isin(row_leaf, leaves) | np.isin(near_leaf, leaves))
        tasks = set(corpus.task[rows].tolist())
        task = list(Task)[tasks.pop()] if len(tasks) == 1 and min(tasks) >= 0 else None
        parent = f"{level - 1}-{int(tree.parents[level][index])}" if level else ""
        nodes.append(Node(level, index, rows, parent, task))
        assert nodes[-1].name == name
    return nodes


def network_for(node: Node, config: ExpertsConfig) -> NetworkShape:
    """The node's shape: by its name, else by its task, else the common one."""
    by_task = config.by_node.get(node.task.value) if node.task else None
    return config.by_node.get(node.name) or by_task or config.network


def at_level(values: tuple[Value, ...], level: int) -> Value:
    """A level's value; the last one serves the levels that none is named for."""
    return values[min(level, len(values) - 1)]


def same_weights(a: NetworkShape, b: NetworkShape) -> bool:
    """Whether weights of one shape fit the other."""
    return without_window(a) == without_window(b)


def without_window(shape: NetworkShape) -> NetworkShape:
    """The same for all shapes that differ in their window, which is of no account in training."""
    return replace(shape, window_px=1) if isinstance(shape, NAFNetShape) else shape


def pixel_loss(network: Callable[[Tensor], Tensor], lq: Tensor, hq: Tensor) -> Tensor:
    """Eq. 5: mean absolute error, the network in bfloat16 where that is faster."""
    with half_precision(lq.device):
        restored = network(lq)
    return F.l1_loss(restored.float(), hq)


def kept_loss(
    network: Callable[[Tensor], Tensor],
    earlier: Callable[[Tensor], Tensor],
    lq: Tensor,
    hq: Tensor,
    faded: Tensor,
    keep: float,
) -> Tensor:
    """`pixel_loss`, but what is not `faded` (B,) is compared with what the `earlier` expert made of it, and
    weighs `keep`: that expert's skill in colour cost more steps than it now gets.
    """
    with torch.no_grad(), half_precision(lq.device):
        answer = earlier(lq).float()
    faded = faded[:, None, None, None]
    with half_precision(lq.device):
        restored = network(lq)
    error = (restored.float() - torch.where(faded, hq, answer)).abs()
    return torch.where(faded, error, keep * error).mean()


def draws(
    corpus: Corpus, rows: np.ndarray, clean: np.ndarray, config: ExpertsConfig, seed: tuple[int, ...]
) -> Callable[[int], np.ndarray]:
    """Chunk number -> places (CHUNK, B, 6) of the windows of its steps: see `Corpus.draw`, then `draw_fade`.

    A share of every batch is undegraded, so that clean photos stay clean; a share is in black and white.
    """

    @functools.lru_cache(maxsize=1)
    def places(chunk: int) -> np.ndarray:
        random = np.random.default_rng((*seed, chunk))
        size = (CHUNK, config.batch)
        picked = rows[random.integers(len(rows), size=size)]
        if len(clean):
            undegraded = random.random(size) < config.clean_share
            picked = np.where(undegraded, clean[random.integers(len(clean), size=size)], picked)
        where = corpus.draw(picked, config.patch_px, random)
        return np.concatenate((where, draw_fade(size, config.grey_share, random)), -1)

    return places


class Trainer:
    """Trains experts, one after another or side by side; a shape is built and compiled once for all.

    `check(node, network)`, where there is one, says in dB how good a node's expert is on photos that it is
    not trained on: training keeps the curve, and stops when that is flat.
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
        check: Callable[[Node, nn.Module], float] | None = None,
    ) -> None:
        self.corpus, self.config, self.work, self.seed, self.device = corpus, config, work, seed, device
        self.compile, self.check = compile, check
        self.clean = np.flatnonzero(corpus.recipe < 0)
        self.ready: dict[NetworkShape, tuple[nn.Module, Callable[[Tensor], Tensor], dict[str, Tensor]]] = {}
        self.by_weights: dict[NetworkShape, Callable[[dict[str, Tensor], Tensor], Tensor]] = {}
        if device.type == "cuda":
            corpus.to(device)

    def network(self, shape: NetworkShape) -> tuple[nn.Module, Callable[[Tensor], Tensor], dict[str, Tensor]]:
        """The module of a shape, its (compiled) forward pass, and its initial weights."""
        if shape not in self.ready:
            torch.manual_seed(self.seed)
            module = build_network(shape).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            start = {key: value.clone() for key, value in module.state_dict().items()}
            forward = torch.compile(module) if self.compile else module
            self.ready[shape] = (module, forward, start)
        return self.ready[shape]

    def loaded(self, shape: NetworkShape, weights: dict[str, Tensor]) -> nn.Module:
        """A module of its own with these weights, for use."""
        network = build_network(shape)
        network.load_state_dict(weights)
        return network.to(self.device).eval()

    def train(self, node: Node, origin: Origin | None, *, quiet: bool = False) -> Trained:
        """Train `node` from `origin`, its parent's or an earlier model's weights, where the shapes agree.

        Raises ValueError when the node has no rows.
        """
        shape, budget, places, state = self._plan(node, origin)
        module, forward, start = self.network(shape)
        module.load_state_dict(origin[1] if origin and same_weights(origin[0], shape) else start)
        earlier = self._earlier(shape, origin)

        def loss_at(step: int) -> Tensor:
            chunk, number = divmod(step, CHUNK)
            return self._loss(forward, earlier, torch.from_numpy(places(chunk)[number]).to(self.device))

        learner = Learner(f"expert {node.name}", module, loss_at, budget, state, self._check_of(node, module))
        writer = SummaryWriter(str(self.work / "tensorboard"))
        train([learner], writer=writer, quiet=quiet)
        writer.close()
        return shape, _copy(module), learner.progress

    def train_together(self, nodes: Sequence[Node], origins: Sequence[Origin | None]) -> Iterator[Trained]:
        """`train` for several nodes of one level. On a GPU they are trained side by side, and the level's
        minutes are those of all together; elsewhere one after another.
        """
        if self.device.type != "cuda" or not nodes:
            yield from map(self.train, nodes, origins)
            return
        lanes, shapes = [], []
        for node, origin in zip(nodes, origins, strict=True):
            shape, budget, places, state = self._plan(node, origin)
            template, _, start = self.network(shape)
            module = copy.deepcopy(template)
            module.load_state_dict(origin[1] if origin and same_weights(origin[0], shape) else start)
            loss_at = functools.partial(self._loss_of, self.functional(shape), self._earlier(shape, origin))
            check = self._check_of(node, module)
            lanes.append(Lane(f"expert {node.name}", module, loss_at, places, budget, state, check))
            shapes.append(shape)
        train(lanes)
        for shape, lane in zip(shapes, lanes, strict=True):
            yield shape, _copy(lane.module), lane.progress

    def functional(self, shape: NetworkShape) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        """The forward pass of a shape for any weights, compiled once for all of its experts."""
        shape = without_window(shape)
        if shape not in self.by_weights:
            template = self.network(shape)[0]

            def forward(parameters: dict[str, Tensor], lq: Tensor) -> Tensor:
                return functional_call(template, parameters, (lq,))

            self.by_weights[shape] = torch.compile(forward) if self.compile else forward
        return self.by_weights[shape]

    def _check_of(self, node: Node, module: nn.Module) -> Callable[[], float] | None:
        return functools.partial(self.check, node, module) if self.check else None

    def _earlier(self, shape: NetworkShape, origin: Origin | None) -> Callable[[Tensor], Tensor] | None:
        """The expert that `experts.keep` stays with: the origin, where it has the shape."""
        if not self.config.keep or origin is None or not same_weights(origin[0], shape):
            return None
        weights = {key: value.to(self.device) for key, value in origin[1].items()}
        return functools.partial(self.functional(shape), weights)

    def _loss_of(
        self,
        forward: Callable[[dict[str, Tensor], Tensor], Tensor],
        earlier: Callable[[Tensor], Tensor] | None,
        parameters: dict[str, Tensor],
        places: Tensor,
    ) -> Tensor:
        return self._loss(functools.partial(forward, parameters), earlier, places)

    def _loss(
        self, network: Callable[[Tensor], Tensor], earlier: Callable[[Tensor], Tensor] | None, places: Tensor
    ) -> Tensor:
        where, drawn = places[:, :4], places[:, 4:]
        lq, hq = (fade(x.to(self.device), drawn) for x in self.corpus.cut(where, self.config.patch_px))
        if earlier is None:
            return pixel_loss(network, lq, hq)
        return kept_loss(network, earlier, lq, hq, drawn[:, 1] > 0, self.config.keep)

    def _plan(
        self, node: Node, origin: Origin | None
    ) -> tuple[NetworkShape, Budget, Callable[[int], np.ndarray], Path]:
        """Shape, budget, windows and state's file of a node."""
        if len(node.rows) == 0:
            raise ValueError(f"expert {node.name} has no training samples: lower tree.levels or add photos")
        config, shape = self.config, network_for(node, self.config)
        warm = origin is not None and same_weights(origin[0], shape)
        depth = node.level if warm or node.level == 0 else 0
        budget = Budget(
            at_level(config.steps, node.level),
            at_level(config.minutes, node.level),
            at_level(config.lr, depth),
            ema=config.ema,
            optimizer=config.optimizer,
        )
        places = draws(self.corpus, node.rows, self.clean, config, (self.seed, node.level, node.index))
        return shape, budget, places, self.work / "experts" / f"{node.name}.state.safetensors"


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
