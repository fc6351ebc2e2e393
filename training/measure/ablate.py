"""What each part of the method is worth, at a small budget: the paper's Tables 4 to 7 and E in kind.

Experts are trained once, by `experts.minutes` and `experts.steps`, and shared between rows: in "mixed" a tree
{1, 2, 4, 8, 16}, of which every row takes some levels; in "single" four experts for rain under each of three
clusterings. Every row is scored on the same crops of photos that no training sees, with strengths in and out
of the trained range. Takes the extractor of OUT, else of --init, and with --init that model's ALL to start
from; figures go to OUT/metrics.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.build import stages
from training.build.data import Corpus, Photos
from training.build.experts import Node, Origin, Trainer, nodes_of
from training.build.extractor import corpus_drs
from training.build.losses import expected_l1, straight_through_l1
from training.build.routers import Embedded, embed, measure_l1, new_router, train_routers
from training.build.tree import centers_of, cluster, fit_tree, recipe_means
from training.config import Config, ExpertsConfig, TreeConfig
from training.measure.evaluate import store
from unirestorer.degradation import Recipe
from unirestorer.degradation.recipe import Band
from unirestorer.extractor import Extractor
from unirestorer.imaging import from_uint8
from unirestorer.metrics import psnr
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree
from unirestorer.types import Route, Task

FULL = (1, 2, 4, 8, 16)  # clusters per level of the tree that all rows of "mixed" share
SHIPPED = (1, 4, 8)
BANDS: tuple[Band, ...] = ("in", "out")
ROWS, PX = 160, 128  # crops per band that are scored, and their side
CLUSTERS = 4  # of rain
RAIN = list(Task).index(Task.DERAIN)  # in Corpus.task
BETAS = (0.01, 0.05, 0.2, 1.0)

Row = dict[str, Any]
Chosen = Callable[[Tensor], Tensor]  # DRs (B, D) -> expert (B,) of the full tree
PixelTerm = Callable[[Route, Tensor, Tensor], Tensor]  # Eq. 9's first term, as `expected_l1`


@dataclass(frozen=True)
class Crops:
    """Crops that choices of experts are scored on: their DRs, and PSNR (dB) as given and by expert."""

    e: Tensor  # (N, D)
    input: float  # mean
    psnr: Tensor  # (N, experts)


@dataclass(frozen=True)
class Shared:
    """What all rows of "mixed" share."""

    config: Config
    tree: DegradationTree  # of FULL
    e: Tensor  # (N, D) training DRs
    data: Embedded  # photos that routers learn from, leaves of the full tree
    rows: np.ndarray
    l1: Tensor  # (T, experts)
    crops: dict[str, Crops]  # by band


@dataclass(frozen=True)
class Material:
    """What a run hands over."""

    config: Config
    extractor: Extractor
    corpus: Corpus
    e: Tensor  # (N, D) DRs of the corpus
    held_out: dict[str, Corpus]  # by band
    photos: Photos  # the routers' own
    trained: Photos  # the extractor's
    work: Path
    device: torch.device
    compile: bool
    start: Origin | None = None  # what ALL starts from


def ablate(material: Material) -> Iterator[Row]:
    """Rows of {"table", "row", "in", "out", "input in", "input out"} in dB; with a router also loads."""
    table = mixed_rows if material.config.tree.mode == "mixed" else rain_rows
    yield from table(material)


# Tables 5 to 7 and E: levels, routers, losses


def mixed_rows(material: Material) -> Iterator[Row]:
    """Fineness, levels, routers and losses on the tree of `FULL`."""
    shared = share(material)
    config = shared.config.routers
    trained: dict[tuple[int, ...], tuple[DegradationTree, Tensor, Router]] = {}

    def of_levels(levels: tuple[int, ...]) -> tuple[DegradationTree, Tensor, Router]:
        if levels not in trained:
            trained[levels] = routed(shared, levels)
        return trained[levels]

    for count in FULL:
        yield auto_row(shared, "fineness", str(count), *of_levels((count,)))
    for levels in ((8,), (1, 8), (4, 8), SHIPPED, (1, 4, 8, 16)):
        yield auto_row(shared, "levels", "{" + ", ".join(map(str, levels)) + "}", *of_levels(levels))
    tree, nodes, router = of_levels(SHIPPED)
    yield choice_row(shared, "routers", "nearest centre of all levels", nearest_centre(tree, nodes))
    yield choice_row(shared, "routers", "G_d alone, always the finest", finest(tree, nodes, router))
    yield auto_row(shared, "routers", "G_d and G_g", tree, nodes, router)
    variants: dict[str, dict[str, Any]] = {
        "l1": {"alpha": 0.0, "beta": 0.0},
        "l1 + L_dg": {"beta": 0.0},
        "l1 + L_load": {"alpha": 0.0},
        "straight-through gate": {},
        **{f"all, beta {beta:g}": {"beta": beta} for beta in dict.fromkeys((config.beta, *BETAS))},
    }
    for name, change in variants.items():
        pixels = straight_through_l1 if name.startswith("straight") else expected_l1
        yield auto_row(shared, "losses", name, *routed(shared, SHIPPED, change, pixels))


def share(material: Material) -> Shared:
    """Fit the tree, train its experts, and measure them on the routers' photos and on the scored crops."""
    config = material.config
    settings = TreeConfig("mixed", FULL, config.tree.minimum_samples)
    fitted = fit_tree(material.corpus, material.e, settings, config.seed)
    tree = fitted.tree
    bank = train_all(material, config.experts, nodes_of(tree, fitted.leaf, material.corpus, material.e))
    networks = [bank[name] for name in tree.expert_names]
    routers = replace(config.routers, candidates=tree.leaves)  # every expert on every row
    data = embed(
        material.extractor,
        tree,
        material.photos,
        material.trained,
        routers,
        "mixed",
        config.seed + 2,
        material.work / "embedded",
        material.device,
    )
    rows, l1 = measure_l1(
        tree, networks.__getitem__, data, routers, config.seed, material.work / "l1.npz", material.device
    )
    crops = {band: measure_crops(material, corpus, networks) for band, corpus in material.held_out.items()}
    return Shared(replace(config, routers=routers), tree, material.e, data, rows, l1, crops)


def train_all(material: Material, config: ExpertsConfig, nodes: list[Node]) -> dict[str, nn.Module]:
    """Every node's expert from its parent's weights, the root's from `start`; begun trainings go on."""
    trainer = Trainer(
        material.corpus,
        config,
        material.work,
        material.config.seed,
        material.device,
        compile=material.compile,
    )
    done: dict[str, Origin] = {}
    for node in nodes:
        shape, weights, _ = trainer.train(node, done.get(node.parent) if node.parent else material.start)
        done[node.name] = (shape, weights)
    return {name: trainer.loaded(shape, weights) for name, (shape, weights) in done.items()}


@torch.inference_mode()
def measure_crops(material: Material, corpus: Corpus, networks: list[nn.Module]) -> Crops:
    """DRs of `ROWS` evenly spaced degraded windows, and each network's PSNR on their middle crops."""
    degraded = np.flatnonzero(corpus.recipe >= 0)
    rows = degraded[np.unique(np.linspace(0, len(degraded) - 1, ROWS).astype(int))]
    e = corpus_drs(material.extractor, corpus, material.device)[rows]
    lq, hq = (middle(array, rows, PX) for array in (corpus.lq, corpus.hq))
    table = torch.empty(len(rows), len(networks))
    for number, network in enumerate(tqdm(networks, desc="crops", unit="expert")):
        network.to(material.device)
        for part in torch.arange(len(rows)).split(16):
            restored = network(lq[part].to(material.device)).clamp(0, 1).cpu()
            table[part, number] = torch.tensor(psnr(restored, hq[part]))
    return Crops(e, float(np.mean(psnr(lq, hq))), table)


def middle(windows: np.ndarray, rows: np.ndarray, px: int) -> Tensor:
    """(N, 3, px, px): the middle of some windows (M, side, side, 3) uint8."""
    start = max(0, (windows.shape[1] - px) // 2)
    return from_uint8(windows[rows, start : start + px, start : start + px])


def subtree(tree: DegradationTree, sizes: tuple[int, ...]) -> tuple[DegradationTree, Tensor, Tensor]:
    """Some levels of a tree, named by their sizes.

    Returns the smaller tree, the number in the whole tree of each of its experts, and the new leaf of each
    old one.
    """
    levels = [[len(centers) for centers in tree.centers].index(size) for size in sizes]
    path = tree.expert_table - torch.tensor(tree.offsets)  # (leaves, levels): index within its level
    parents = [torch.zeros(len(tree.centers[levels[0]]), dtype=torch.long)]
    for above, level in zip(levels, levels[1:], strict=False):
        up = torch.zeros(len(tree.centers[level]), dtype=torch.long)
        up[path[:, level]] = path[:, above]
        parents.append(up)
    new_leaf = path[:, levels[-1]]
    sets: list[dict[frozenset[Task], int]] = [{} for _ in range(len(tree.centers[levels[-1]]))]
    for old, new in enumerate(new_leaf.tolist()):
        for tasks, count in tree.task_sets[old].items():
            sets[new][tasks] = sets[new].get(tasks, 0) + count
    small = DegradationTree(
        tuple(tree.centers[level] for level in levels),
        tuple(parents),
        tuple(sets),
        tuple(tree.names[level] for level in levels),
    )
    nodes = [tree.offsets[level] + torch.arange(len(tree.centers[level])) for level in levels]
    return small, torch.cat(nodes), new_leaf


def routed(
    shared: Shared,
    sizes: tuple[int, ...],
    change: dict[str, Any] | None = None,
    pixels: PixelTerm = expected_l1,
) -> tuple[DegradationTree, Tensor, Router]:
    """A subtree, its experts' numbers in the whole tree, and routers trained for it."""
    tree, nodes, new_leaf = subtree(shared.tree, sizes)
    config = replace(shared.config.routers, **(change or {}))
    leaf = torch.where(shared.data.leaf >= 0, new_leaf[shared.data.leaf], -1)
    data = replace(shared.data, leaf=leaf)
    router = new_router(tree, shared.e, config, shared.config.seed)
    train_routers(
        router, tree, data, shared.rows, shared.l1[:, nodes], config, shared.config.seed, pixels=pixels
    )
    return tree, nodes, router


def auto_row(
    shared: Shared, table: str, name: str, tree: DegradationTree, nodes: Tensor, router: Router
) -> Row:
    """Auto mode's score, with the levels' loads in percent."""
    loads = {}
    for band, crops in shared.crops.items():
        with torch.no_grad():
            level = router.route(router.estimate(crops.e)).level
        share_ = torch.bincount(level, minlength=tree.levels) / len(level)
        loads[f"load {band}"] = [round(100 * value) for value in share_.tolist()]

    def choose(e: Tensor) -> Tensor:
        return nodes[router.route(router.estimate(e)).expert]

    return {**choice_row(shared, table, name, choose), **loads}


@torch.no_grad()
def choice_row(shared: Shared, table: str, name: str, choose: Chosen) -> Row:
    """The mean PSNR of a choice of experts of the whole tree, in and out of the trained range."""
    figures: Row = {"table": table, "row": name}
    for band, crops in shared.crops.items():
        figures[band] = round(float(crops.psnr.gather(1, choose(crops.e)[:, None]).mean()), 3)
        figures[f"input {band}"] = round(crops.input, 3)
    return figures


def nearest_centre(tree: DegradationTree, nodes: Tensor) -> Chosen:
    """The node, of whatever level, whose centre lies nearest."""
    return lambda e: nodes[torch.cdist(e, torch.cat(tree.centers)).argmin(1)]


def finest(tree: DegradationTree, nodes: Tensor, router: Router) -> Chosen:
    """The leaf router's choice, always at the finest level."""
    return lambda e: nodes[tree.expert_table[router.route(router.estimate(e)).leaf, -1]]


# Table 4: what the clusters of rain are made of


@dataclass(frozen=True)
class Division:
    """Rain in `CLUSTERS` parts."""

    name: str
    cluster: np.ndarray  # (P,) of the trained rows
    assign: Callable[[Corpus, np.ndarray], np.ndarray]  # a corpus and rows of it -> their clusters


def rain_rows(material: Material) -> Iterator[Row]:
    """Four experts for rain under each division of it.

    A held-out photo goes to its own cluster's expert, by its own DR or strength.
    """
    corpus, strength = material.corpus, strengths(material.corpus)
    pool = np.flatnonzero((corpus.task == RAIN) & ~np.isnan(strength))
    divisions = divide_rain(material, pool, strength[pool])
    nodes = [Node(0, 0, pool, task=Task.DERAIN)]
    for number, division in enumerate(divisions):
        for k in np.unique(division.cluster).tolist():
            rows = pool[division.cluster == k]
            nodes.append(Node(1, CLUSTERS * number + k, rows, "0-0", Task.DERAIN))
    experts = train_all(material, material.config.experts, nodes)
    for number, division in enumerate(divisions):
        own = {k: experts[f"1-{CLUSTERS * number + k}"] for k in np.unique(division.cluster).tolist()}
        figures: Row = {"table": "rain in four", "row": division.name}
        for band, held_out in material.held_out.items():
            before, after = rain_psnr(division, own, held_out, material.device)
            figures |= {band: round(after, 3), f"input {band}": round(before, 3)}
        yield figures


def divide_rain(material: Material, pool: np.ndarray, strength: np.ndarray) -> list[Division]:
    """By our extractor, by one that was never trained, and by the `strength` (P,) of the pool's rows (P,)."""
    torch.manual_seed(material.config.seed)
    untrained = Extractor(material.extractor.shape, material.extractor.captions).eval()
    edges = np.quantile(strength, np.arange(1, CLUSTERS) / CLUSTERS)
    e = corpus_drs(untrained, material.corpus, material.device)
    return [
        by_dr("our extractor", material, material.extractor, pool, material.e),
        by_dr("an untrained tower", material, untrained, pool, e),
        Division(
            "known strength",
            np.searchsorted(edges, strength),
            lambda corpus, rows: np.searchsorted(edges, strengths(corpus)[rows]),
        ),
    ]


@torch.inference_mode()
def rain_psnr(
    division: Division, experts: dict[int, nn.Module], corpus: Corpus, device: torch.device
) -> tuple[float, float]:
    """Mean PSNR (dB) of rainy crops before and after, each restored by the expert of its cluster."""
    rows = np.flatnonzero(corpus.task == RAIN)[:ROWS]
    lq, hq = (middle(array, rows, PX) for array in (corpus.lq, corpus.hq))
    cluster = division.assign(corpus, rows)
    restored = torch.empty_like(lq)
    for k in np.unique(cluster).tolist():
        at = torch.from_numpy(np.flatnonzero(cluster == k))
        restored[at] = experts[k](lq[at].to(device)).clamp(0, 1).cpu()
    return float(np.mean(psnr(lq, hq))), float(np.mean(psnr(restored, hq)))


def by_dr(name: str, material: Material, extractor: Extractor, pool: np.ndarray, e: Tensor) -> Division:
    """K-means over the mean DRs of the pool's recipes; e (N, D) are the corpus' DRs by this extractor."""
    recipe = material.corpus.recipe
    recipes = np.unique(recipe[pool])
    means = recipe_means(e, recipe, len(material.corpus.entries))[recipes]
    weights = np.bincount(recipe[pool])[recipes]
    label = cluster(means, weights, min(CLUSTERS, len(recipes)), material.config.seed)
    centers = torch.from_numpy(centers_of(means, weights, label)).float()
    of_recipe = dict(zip(recipes.tolist(), label.tolist(), strict=True))

    def assign(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
        return torch.cdist(corpus_drs(extractor, corpus, material.device)[rows], centers).argmin(1).numpy()

    return Division(name, np.array([of_recipe[i] for i in recipe[pool].tolist()]), assign)


def strengths(corpus: Corpus) -> np.ndarray:
    """(N,) strength of each row's only step; nan for clean rows, real pairs and mixtures."""
    by_recipe = [
        Recipe.from_dict(entry.recipe).steps[0].strength
        if entry.recipe is not None and len(entry.tasks) == 1
        else np.nan
        for entry in corpus.entries
    ]
    return np.array([by_recipe[recipe] if recipe >= 0 else np.nan for recipe in corpus.recipe])


# From the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ablate` on a command line: those of a run."""
    stages.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train, score, print, and store in OUT/metrics.json after every row. Raises ValueError for bad input."""
    training_run = stages.make_run(arguments)
    config = training_run.config
    about = training_run.about(
        steps=config.experts.steps,
        minutes=config.experts.minutes,
        router_steps=config.routers.steps,
        **training_run.origin("experts/0-0.safetensors"),
    )
    rows = []
    for row in ablate(material_of(training_run)):
        rows.append(row)
        stages.say(f"{row['table']}, {row['row']}: {row['in']:.2f} dB in, {row['out']:.2f} dB out")
        key = f"ablation-{config.tree.mode}"
        store(training_run.out / "metrics.json", key, {"about": about, "rows": rows})


def material_of(training_run: stages.Run) -> Material:
    """What a run has for ablations. Raises ValueError where neither OUT nor --init has an extractor."""
    source = training_run.init
    if (training_run.out / "config.json").is_file() and training_run.checkpoint.has("extractor.safetensors"):
        source = training_run.checkpoint
    if source is None:
        raise ValueError("ablate needs an extractor: run the stage extractor, or name a model by --init")
    return Material(
        training_run.config,
        source.extractor(),
        training_run.corpus,
        training_run.drs_of(source),
        {band: training_run.held_out(band) for band in BANDS},
        training_run.photos("routers"),
        training_run.photos("experts"),
        training_run.work / "ablate" / source.config["files"]["extractor.safetensors"][:16],
        training_run.device,
        training_run.compile,
        training_run.old_expert("0-0", 0),
    )
