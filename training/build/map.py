"""The UMAP of training DRs, stored as plain arrays so that nothing of umap is needed to show it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.build.data import Corpus
from training.build.routers import Embedded
from training.config import MapConfig
from unirestorer.degradation import Recipe, degree_words
from unirestorer.map import DegradationMap
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree


def fit_map(
    corpus: Corpus,
    e: Tensor,
    leaf: np.ndarray,
    tree: DegradationTree,
    router: Router,
    data: Embedded,
    config: MapConfig,
    seed: int,
) -> DegradationMap:
    """Lay out some of the corpus' DRs e (N, D); `leaf` (recipes,) holds each recipe's leaf, `data` the held-
    out photos.
    """
    import umap  # seconds of compilation, needed here only

    random = np.random.default_rng((seed, 5))
    picked = np.sort(random.permutation(len(corpus))[: config.points])
    drs = e[picked].numpy().astype(np.float16)
    neighbors = min(config.neighbors, len(picked) - 1)
    layout = umap.UMAP(n_neighbors=neighbors, min_dist=0.15, random_state=seed, n_jobs=1)
    xy = np.asarray(layout.fit_transform(drs.astype(np.float32)), np.float32)
    row_leaf = np.where(corpus.recipe >= 0, leaf[corpus.recipe], -1)[picked]
    rows = [corpus.rows[i] for i in picked]
    entries = [corpus.entries[row.recipe] if row.recipe >= 0 else None for row in rows]
    unplaced = DegradationMap(
        xy=xy,
        drs=drs,
        leaf=row_leaf.astype(np.int16),
        task=np.array(["+".join(entry.tasks) if entry else "clean" for entry in entries]),
        text=np.array([_text(entry.recipe, entry.caption) if entry else "clean photo" for entry in entries]),
        center_xy=_centers(xy, row_leaf, tree),
        gran_reference=np.zeros(1, np.float32),
        distance_reference=np.zeros(1, np.float32),
    )
    held = data.e[data.held_out]
    with torch.no_grad():
        gran = router.estimate(held).log_e_gran.mean(1).numpy()
    distance = np.array([unplaced.nearest(one)[1].mean() for one in held.numpy()], np.float32)
    return replace(unplaced, gran_reference=np.sort(gran), distance_reference=np.sort(distance))


def _text(recipe: dict | None, caption: str) -> str:
    """A recipe with its strengths: "heavy rain (120)"; a real pair's caption."""
    if recipe is None:
        return caption.removeprefix("a photo with ")
    return ", ".join(f"{degree_words(step)} ({step.strength:.3g})" for step in Recipe.from_dict(recipe).steps)


def _centers(xy: np.ndarray, leaf: np.ndarray, tree: DegradationTree) -> np.ndarray:
    """(nodes, 2): the median place of each node's points, in the experts' order; the map's middle for a node
    without any.
    """
    table = tree.expert_table.numpy()
    places = np.tile(np.median(xy, axis=0), (len(tree.expert_names), 1))
    for node in range(len(places)):
        members = np.isin(leaf, np.flatnonzero((table == node).any(1)))
        if members.any():
            places[node] = np.median(xy[members], axis=0)
    return places.astype(np.float32)
