"""Heads and routers (Eq. 6 to 9); the experts stay frozen.

Three steps: degrade and embed photos by the view policy of serving; measure, once, the l1 of crops that no
expert was trained on under the experts that they may be sent to; train H_d, H_g, G_d and G_g on both.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.build.data import Photos, at_least, draw_fade, fade
from training.build.losses import expected_l1, load_loss, uncertainty_loss
from training.config import RoutersConfig
from unirestorer.degradation import Recipe, draw_recipe
from unirestorer.degradation.recipe import child_generator
from unirestorer.extractor import Extractor
from unirestorer.files import atomic_write
from unirestorer.imaging import as_file, from_uint8, load_image, to_uint8
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree
from unirestorer.types import Mode, Route, Task

HELD_OUT_SHARE = 0.2  # of the photos: early stopping and the page's percentiles
CLEAN_SHARE = 0.25  # undegraded rows per degraded one
LEAST_PART = 0.6  # of a photo's sides: what a row that is learned from shows


@dataclass(frozen=True)
class Embedded:
    """M degraded photos that the heads learn from."""

    e: Tensor  # (M, D) DR of the photo
    leaf: Tensor  # (M,) leaf of the recipe, -1 = clean
    held_out: Tensor  # (M,) bool: of a photo that is not learned from
    tabled: Tensor  # (M,) bool: may be measured under the experts
    lq: np.ndarray  # (M, px, px, 3) uint8, one crop of each
    hq: np.ndarray
    key: str = ""  # names the plan and the extractor


@dataclass(frozen=True)
class Planned:
    """One row to be made: which photo, under which recipe or out of which real pair (numbered; -1 =
    undegraded).
    """

    number: int
    photo: str
    recipe: Recipe  # of a real pair without steps, only for its seed
    whole: bool  # the whole photo, as it is served; otherwise a part of it
    source: str = ""  # a real pair's degraded photo
    task: Task | None = None  # of a real pair
    fade: tuple[int, int] = (0, 0)  # as `draw_fade` gives it


def draw_rows(
    photos: Photos, trained: Photos, config: RoutersConfig, mode: Mode, seed: int
) -> tuple[list[Planned], set[str]]:
    """What to degrade, and the names of the held-out photos (`HELD_OUT_SHARE` of either kind).

    Every recipe gets `photos_per_recipe` of the routers' `photos` and `trained_photos_per_recipe` of those
    that the extractor has seen; in "single" every real pair follows; undegraded rows go
    round through all photos. Held-out photos are shown whole, as they would be served, the others in random
    parts.
    """
    random = np.random.default_rng((seed, 3))
    held: set[str] = set()
    for part in (photos, trained):
        order = random.permutation(len(part.clean))
        held |= {part.clean[i] for i in order[: max(1, round(HELD_OUT_SHARE * len(order)))]}
    plan: list[Planned] = []

    def add(number: int, photo: str, recipe: Recipe) -> None:
        plan.append(Planned(number, photo, recipe.reseeded(int(random.integers(2**31))), photo in held))

    for number in range(config.recipes * len(Task)):
        task = list(Task)[number % len(Task)] if mode == "single" else None
        recipe = draw_recipe(
            seed * 1_000_003 + 50_000_017 + number, mode=mode, task=task, real_rain=bool(photos.rain)
        )
        for part, count in ((photos, config.photos_per_recipe), (trained, config.trained_photos_per_recipe)):
            for i in random.choice(len(part.clean), min(count, len(part.clean)), replace=False):
                add(number, part.clean[i], recipe)
    pairs = photos.pairs + trained.pairs if mode == "single" else ()
    for number, (clean, degraded, task) in enumerate(pairs, start=config.recipes * len(Task)):
        recipe = Recipe((), int(random.integers(2**31)))
        plan.append(Planned(number, clean, recipe, clean in held, degraded, task))
    everyone = photos.clean + trained.clean
    order = random.permutation(len(everyone))
    for i in range(round(CLEAN_SHARE * len(plan))):
        add(-1, everyone[order[i % len(order)]], Recipe((), 0))
    fades = draw_fade((len(plan),), config.grey_share, random).tolist()
    return [replace(row, fade=tuple(drawn)) for row, drawn in zip(plan, fades, strict=True)], held


def embed(
    extractor: Extractor,
    tree: DegradationTree,
    photos: Photos,
    trained: Photos,
    config: RoutersConfig,
    mode: Mode,
    seed: int,
    work: Path,
    device: torch.device,
) -> Embedded:
    """Degrade photos under new recipes, embed each as serving would, and label them with their recipe's leaf.

    The leaf is the one nearest (in "single": within the task) to the mean DR of the recipe's photos. The
    extractor's DRs are as good on photos that it never saw, so the heads learn from `trained` photos too; the
    experts are measured on `photos` and on undegraded ones alone. Done photos are kept in `work`, in a folder
    named by the plan, so a stopped run goes on and another plan starts anew.
    """
    plan, held = draw_rows(photos, trained, config, mode, seed)
    key = plan_key(plan, config.crop_px)
    e, lq, hq = _embed_plan(extractor, photos, plan, config.crop_px, work / key, device)
    leaf = torch.full((len(plan),), -1)
    numbers = np.array([row.number for row in plan])
    for number in range(int(numbers.max()) + 1):
        rows = np.flatnonzero(numbers == number)
        first = plan[rows[0]]
        tasks = {first.task} if first.task else first.recipe.tasks
        allowed = tree.mask(tasks) if mode == "single" else None
        leaf[rows] = tree.nearest_leaf(e[rows].mean(0, keepdim=True), allowed)
    unseen = set(photos.clean)
    held_out = torch.tensor([row.photo in held for row in plan])
    tabled = torch.tensor([row.number < 0 or row.photo in unseen for row in plan])
    return Embedded(e, leaf, held_out, tabled, lq, hq, key)


def plan_key(plan: list[Planned], px: int) -> str:
    """16 hex digits that change with any row of the plan."""
    rows = [[row.number, row.photo, row.recipe.to_dict(), row.whole, row.source, row.fade] for row in plan]
    return hashlib.sha256(json.dumps([px, LEAST_PART, rows]).encode()).hexdigest()[:16]


@torch.inference_mode()
def _embed_plan(
    extractor: Extractor, photos: Photos, plan: list[Planned], px: int, folder: Path, device: torch.device
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """DR (M, D) and one crop (M, px, px, 3) LQ and HQ of each planned photo; done blocks survive a stop."""
    extractor.to(device)
    block, parts = 64, []
    folder.mkdir(parents=True, exist_ok=True)
    for start in tqdm(range(0, len(plan), block), desc="router photos", unit="block"):
        path = folder / f"{start:06d}.npz"
        if not path.is_file():
            rows = [_embed_one(extractor, photos, row, px, device) for row in plan[start : start + block]]
            e, lq, hq = (np.stack(column) for column in zip(*rows, strict=True))
            np.savez(file := io.BytesIO(), e=e, lq=lq, hq=hq)
            atomic_write(path, file.getvalue())
        with np.load(path) as stored:
            parts.append((stored["e"], stored["lq"], stored["hq"]))
    e, lq, hq = (np.concatenate(column) for column in zip(*parts, strict=True))
    return torch.from_numpy(e), lq, hq


def _embed_one(
    extractor: Extractor, photos: Photos, row: Planned, px: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place = child_generator(row.recipe.seed, 300)
    clean = at_least(load_image(photos.folder / row.photo), px)
    pair = at_least(load_image(photos.folder / row.source), px) if row.source else clean
    both = torch.cat((clean, pair))
    if not row.whole:
        sides = [
            max(
                extractor.shape.view_px,
                px,
                round(side * float(LEAST_PART + (1 - LEAST_PART) * torch.rand((), generator=place))),
            )
            for side in clean.shape[2:]
        ]
        both = random_window(both, sides[0], sides[1], place)
    clean = both[:1]
    degraded = both[1:] if row.source else row.recipe.apply(clean, photos.maps)
    both = fade(torch.cat((degraded, clean)), torch.tensor([row.fade, row.fade]))
    both[:1] = as_file(both[:1])
    e = extractor(both[:1].to(device))[0].cpu().numpy()
    both = random_window(both, px, px, place)
    return e, to_uint8(both[:1]), to_uint8(both[1:])


def random_window(image: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A random window of images (B, 3, H, W), all of it along a side that is no longer than asked for."""
    top, left = (
        int(torch.randint(max(0, side - wanted) + 1, (1,), generator=generator))
        for side, wanted in zip(image.shape[2:], (height, width), strict=True)
    )
    return image[..., top : top + height, left : left + width]


@torch.inference_mode()
def measure_l1(
    tree: DegradationTree,
    expert: Callable[[int], nn.Module],
    data: Embedded,
    config: RoutersConfig,
    seed: int,
    path: Path,
    device: torch.device,
) -> tuple[np.ndarray, Tensor]:
    """Rows (T,) of `data` and their l1 (T, experts) under the experts on the paths of the likeliest leaves.

    Candidates are the leaves nearest to the row's DR and its own; a clean row has none of its own, so every
    expert is a candidate: some expert that keeps a clean photo as it is must be known. Experts that were not
    measured get the row's worst measured error: nothing draws the router there. Kept in `path`, expert by
    expert.
    """
    random = np.random.default_rng((seed, 4))
    rows = np.sort(random.permutation(np.flatnonzero(data.tabled.numpy()))[: config.table_rows])
    near = (
        torch.cdist(data.e[rows], tree.centers[-1])
        .topk(min(config.candidates, tree.leaves), largest=False)
        .indices
    )
    own = data.leaf[rows, None]
    leaves = torch.cat((near, torch.where(own >= 0, own, near[:, :1])), 1)  # (T, candidates + 1)
    wanted = torch.zeros(len(rows), len(tree.expert_names), dtype=torch.bool)
    wanted.scatter_(1, tree.expert_table[leaves].flatten(1), True)
    wanted |= own < 0
    path.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, np.ndarray] = {}
    if path.is_file():
        with np.load(path) as stored:
            done = dict(stored)
    for number, name in enumerate(tqdm(tree.expert_names, desc="l1 table", unit="expert")):
        chosen = np.flatnonzero(wanted[:, number])
        if name in done or len(chosen) == 0:
            continue
        network = expert(number).to(device)
        errors = []
        for part in np.array_split(chosen, -(-len(chosen) // 16)):
            lq, hq = (from_uint8(array[rows[part]]).to(device) for array in (data.lq, data.hq))
            errors.append((network(lq).clamp(0, 1) - hq).abs().mean((1, 2, 3)).cpu().numpy())
        done[name] = np.concatenate(errors)
        np.savez(file := io.BytesIO(), **done)  # pyright: ignore[reportArgumentType]
        atomic_write(path, file.getvalue())
    table = torch.full(wanted.shape, -1.0)
    for number, name in enumerate(tree.expert_names):
        if name in done:
            table[wanted[:, number], number] = torch.from_numpy(done[name])
    worst = table.max(1, keepdim=True).values
    return rows, torch.where(table < 0, worst, table).clamp(min=1e-4)


def new_router(tree: DegradationTree, e: Tensor, config: RoutersConfig, seed: int) -> Router:
    """An untrained router with the statistics of training DRs e (N, D); G_d starts as the nearest-centre
    rule.
    """
    torch.manual_seed(seed)
    router = Router(e.shape[1], tree.expert_table, config.shape)
    router.mean.copy_(e.mean(0))
    router.std.copy_(e.std(0).clamp(min=1e-4))
    u = router.standardised(tree.centers[-1])  # (leaves, D)
    if len(u) > 1:
        gap = (
            torch.cdist(u, u)
            .square()
            .masked_fill(torch.eye(len(u), dtype=torch.bool), torch.inf)
            .min(1)
            .values
        )
        scale = 4 / gap.median()
        with torch.no_grad():  # -|e_deg - u|^2 without its common term
            router.gate_leaf.gate.weight.copy_(scale * 2 * u)
            router.gate_leaf.gate.bias.copy_(-scale * u.square().sum(1))
    return router


def train_routers(
    router: Router,
    tree: DegradationTree,
    data: Embedded,
    rows: np.ndarray,
    l1: Tensor,
    config: RoutersConfig,
    seed: int,
    writer: SummaryWriter | None = None,
    *,
    pixels: Callable[[Route, Tensor, Tensor], Tensor] = expected_l1,
) -> dict[str, Any]:
    """Minimise Eq. 9 over heads and routers; keep what is best on held-out photos and report on those.

    `pixels` is the equation's first term.
    """
    leaf, held = data.leaf, data.held_out
    u = router.standardised(tree.centers[-1])
    learn = torch.nonzero((leaf >= 0) & ~held)[:, 0]
    check = torch.nonzero((leaf >= 0) & held)[:, 0]
    table_held = held[rows]
    table_learn, table_check = torch.nonzero(~table_held)[:, 0], torch.nonzero(table_held)[:, 0]
    for part in router.modules():
        if isinstance(part, nn.Dropout):
            part.p = config.dropout
    optimizer = torch.optim.AdamW(router.parameters(), lr=config.lr, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(seed)

    def loss(estimated: Tensor, tabled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        estimate = router.estimate(data.e[estimated])
        route = router.route(router.estimate(data.e[rows[tabled.numpy()]]))
        return (
            pixels(route, l1[tabled], router.expert_table),
            uncertainty_loss(estimate, u[leaf[estimated]]),
            load_loss(route),
        )

    best, best_state, curve = float("inf"), copy.deepcopy(router.state_dict()), []
    bar = tqdm(range(config.steps), desc="routers", unit="step")
    for step in bar:
        router.train()
        pick = learn[torch.randint(len(learn), (config.batch,), generator=generator)]
        tabled = table_learn[torch.randint(len(table_learn), (config.batch,), generator=generator)]
        error, uncertainty, load = loss(pick, tabled)
        total = error + config.alpha * uncertainty + config.beta * load  # Eq. 9
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 24 or step == config.steps - 1:
            router.eval()
            with torch.no_grad():
                parts = loss(check if len(check) else learn, table_check if len(table_check) else table_learn)
                value = float(parts[0] + config.alpha * parts[1] + config.beta * parts[2])
            curve.append([step + 1, *(round(float(part), 5) for part in parts)])
            bar.set_postfix_str(f"held-out {value:.4f}")
            if writer:
                for name, part in zip(("expected_l1", "uncertainty", "load"), parts, strict=True):
                    writer.add_scalar(f"routers/{name}", float(part), step)
            if value < best:
                best, best_state = value, copy.deepcopy(router.state_dict())
    router.load_state_dict(best_state)
    router.eval()
    return {"best_held_out_loss": best, "curve": curve, **routing_report(router, tree, data, rows, l1)}


@torch.no_grad()
def routing_report(
    router: Router, tree: DegradationTree, data: Embedded, rows: np.ndarray, l1: Tensor
) -> dict[str, Any]:
    """Leaf and type accuracy, level loads and lost l1 on held-out photos; and what a leaf's expert gains over
    its parent on the leaf's own rows, dB, on all photos that no expert saw.
    """
    known = torch.nonzero((data.leaf >= 0) & data.held_out)[:, 0]
    route = router.route(router.estimate(data.e[known]))
    own = data.leaf[known]
    parents = tree.expert_table[:, -2] if tree.levels > 1 else tree.expert_table[:, -1]
    table = torch.nonzero(data.held_out[rows])[:, 0]
    chosen = router.route(router.estimate(data.e[rows[table.numpy()]]))
    lost = l1[table].gather(1, chosen.expert[:, None])[:, 0] / l1[table].min(1).values
    at_home = torch.nonzero(data.leaf[rows] >= 0)[:, 0]
    paths = tree.expert_table[data.leaf[rows][at_home]]  # (rows, levels)
    leaf_l1, parent_l1 = (l1[at_home, paths[:, level]] for level in (-1, max(-2, -tree.levels)))
    return {
        "held_out_photos": len(known),
        "leaf_accuracy": float((route.leaf == own).float().mean()),
        "type_accuracy": float((parents[route.leaf] == parents[own]).float().mean()),
        "level_loads": (torch.bincount(route.level, minlength=tree.levels) / max(len(known), 1)).tolist(),
        "l1_over_best_expert": float(lost.mean()) if len(lost) else None,
        "leaf_over_parent_db": float(20 * (parent_l1 / leaf_l1).log10().mean()) if len(at_home) else None,
    }
