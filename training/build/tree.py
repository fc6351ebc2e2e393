"""The degradation tree by hierarchical K-means over DRs (Eq. 4), and every recipe's leaf.

A sample's leaf belongs to its recipe, not to one crop: K-means runs over the mean DRs of recipes, each over
several crops and photos. What a single photo's DR deviates from its leaf's centre is the estimation error
that the heads later learn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from training.build.data import Corpus, Entry
from training.config import LEAVES_PER_TASK, TreeConfig
from unirestorer.degradation import Recipe
from unirestorer.tree import DegradationTree
from unirestorer.types import TASK_NOUNS, Mode, Task

ROOT_NAME = "everything"


@dataclass(frozen=True)
class FittedTree:
    """A tree, the leaf of each recipe of its corpus, and what was measured on the way."""

    tree: DegradationTree
    leaf: np.ndarray  # (recipes,)
    report: dict[str, Any]


def recipe_means(e: Tensor, recipe: np.ndarray, count: int) -> np.ndarray:
    """Mean DR (count, D) of each recipe's rows, from the rows' DRs e (N, D) and recipe indices (N,), -1 =
    none.
    """
    rows = np.flatnonzero(recipe >= 0)
    sums = np.zeros((count, e.shape[1]))
    np.add.at(sums, recipe[rows], e[rows].double().numpy())
    return sums / np.bincount(recipe[rows], minlength=count)[:, None]


def fit_tree(corpus: Corpus, e: Tensor, config: TreeConfig, seed: int) -> FittedTree:
    """Cluster the corpus' recipes by their rows' DRs e (N, D).

    Raises ValueError for a topology that the mode or the number of recipes does not allow.
    """
    means = recipe_means(e, corpus.recipe, len(corpus.entries))  # (recipes, D)
    rows = np.bincount(corpus.recipe[corpus.recipe >= 0], minlength=len(means))
    if config.levels[-1] > len(means):
        raise ValueError(f"{config.levels[-1]} leaves need as many recipes, the corpus has {len(means)}")
    if config.mode == "single":
        leaf = _cluster_within_tasks(corpus, means, rows, config, seed)
    else:
        leaf = cluster(means, rows, config.levels[-1], seed)
    leaf, merged = merge_small(leaf, means, rows, config.minimum_samples, _tasks_of(corpus, config.mode))
    centers = [centers_of(means, rows, leaf)]
    parents: list[np.ndarray] = []
    for size in reversed(config.levels[:-1]):  # coarser: K-means on the finer centres
        below = centers[0]
        if config.mode == "single" and size == len(Task):
            order = [task.value for task in Task]
            up = np.array(
                [
                    order.index(corpus.entries[np.flatnonzero(leaf == k)[0]].tasks[0])
                    for k in range(len(below))
                ]
            )
            up = np.unique(up, return_inverse=True)[1]
        else:
            up = cluster(below, np.ones(len(below)), min(size, len(below)), seed)
        weights = np.bincount(leaf, rows, len(below)) if len(centers) == 1 else np.ones(len(below))
        parents.insert(0, up)
        centers.insert(0, centers_of(below, weights, up))
    parents.insert(0, np.zeros(len(centers[0]), int))
    sets = tuple(_task_sets(corpus, leaf, rows, k) for k in range(len(centers[-1])))
    tree = DegradationTree(
        tuple(torch.from_numpy(c).float() for c in centers),
        tuple(torch.from_numpy(p).long() for p in parents),
        sets,
        _names(corpus, leaf, parents, config.mode, sets),
    )
    return FittedTree(tree, leaf, {"merged_leaves": merged, **_report(corpus, e, means, rows, leaf, seed)})


def leaf_of(corpus: Corpus, e: Tensor, tree: DegradationTree) -> np.ndarray:
    """The leaf (recipes,) of each of the corpus' recipes in a finished tree, by the rows' DRs e (N, D): the
    nearest of those that know the recipe's tasks, or of all where none does.
    """
    means = recipe_means(e, corpus.recipe, len(corpus.entries))
    tasks = [frozenset(map(Task, entry.tasks)) for entry in corpus.entries]
    known = [[own in sets for sets in tree.task_sets] for own in tasks]
    allowed = torch.tensor(known)  # (recipes, leaves)
    distance = torch.cdist(torch.from_numpy(means).float(), tree.centers[-1])
    return distance.masked_fill(~allowed & allowed.any(1, keepdim=True), torch.inf).argmin(1).numpy()


def merge_small(
    leaf: np.ndarray, means: np.ndarray, rows: np.ndarray, minimum: int, sibling: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Merge every leaf with fewer than `minimum` rows into its nearest sibling; leaves (recipes,) renumbered,
    and notes.

    `sibling` (recipes,) holds a group per recipe; only leaves of the same group merge.
    """
    notes = []
    while True:
        leaf = np.unique(leaf, return_inverse=True)[1]
        counts = np.bincount(leaf, rows)
        group = np.array([sibling[leaf == k][0] for k in range(len(counts))])
        small = [k for k in np.argsort(counts) if counts[k] < minimum and (group == group[k]).sum() > 1]
        if not small:
            return leaf, notes
        centers = centers_of(means, rows, leaf)
        distance = np.linalg.norm(centers - centers[small[0]], axis=1)
        distance[group != group[small[0]]] = np.inf
        distance[small[0]] = np.inf
        notes.append(
            f"leaf {small[0]} had {int(counts[small[0]])} samples and joined leaf {distance.argmin()}"
        )
        leaf = np.where(leaf == small[0], distance.argmin(), leaf)


def _tasks_of(corpus: Corpus, mode: Mode) -> np.ndarray:
    if mode == "mixed":
        return np.zeros(len(corpus.entries), int)
    order = [task.value for task in Task]
    return np.array([order.index(entry.tasks[0]) for entry in corpus.entries])


def _cluster_within_tasks(
    corpus: Corpus, means: np.ndarray, rows: np.ndarray, config: TreeConfig, seed: int
) -> np.ndarray:
    """K-means inside each task; leaves numbered task by task, mild to severe."""
    quotas = _quotas(config.levels[-1])
    task, leaf, first = _tasks_of(corpus, "single"), np.zeros(len(means), int), 0
    for number, (name, quota) in enumerate(quotas.items()):
        members = np.flatnonzero(task == number)
        if len(members) == 0:
            continue
        own = cluster(means[members], rows[members], min(quota, len(members)), seed)
        severity = np.array([_severity(corpus.entries[m], name) for m in members])
        order = np.argsort([np.median(severity[own == k]) for k in range(own.max() + 1)])
        leaf[members] = first + np.argsort(order)[own]
        first += own.max() + 1
    return leaf


def _quotas(leaves: int) -> dict[Task, int]:
    """Leaves per task: the paper's for 19, else as equal as possible."""
    if leaves == sum(LEAVES_PER_TASK.values()):
        return {task: LEAVES_PER_TASK[task] for task in Task}
    if leaves < len(Task):
        raise ValueError(f"a single-degradation tree needs at least {len(Task)} leaves, got {leaves}")
    return {task: leaves // len(Task) + (i < leaves % len(Task)) for i, task in enumerate(Task)}


def _severity(entry: Entry, task: Task) -> float:
    """Strength of a recipe, rising with severity; real pairs count as severe."""
    if entry.recipe is None:
        return 1e6
    step = Recipe.from_dict(entry.recipe).steps[0]
    return -step.strength if task is Task.DEJPEG else step.strength


def cluster(points: np.ndarray, weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    fit = KMeans(n_clusters=count, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    return np.asarray(fit.fit_predict(points, sample_weight=weights))


def centers_of(points: np.ndarray, weights: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.stack(
        [np.average(points[label == k], axis=0, weights=weights[label == k]) for k in range(label.max() + 1)]
    )


def _task_sets(corpus: Corpus, leaf: np.ndarray, rows: np.ndarray, k: int) -> dict[frozenset[Task], int]:
    sets: Counter[frozenset[Task]] = Counter()
    for index in np.flatnonzero(leaf == k):
        sets[frozenset(map(Task, corpus.entries[index].tasks))] += int(rows[index])
    return dict(sets)


def _names(
    corpus: Corpus,
    leaf: np.ndarray,
    parents: list[np.ndarray],
    mode: Mode,
    sets: tuple[dict[frozenset[Task], int], ...],
) -> tuple[tuple[str, ...], ...]:
    """A name in words per node: root, tasks, and for leaves task and commonest degree ("rain, heavy")."""
    if mode == "single":
        leaves = [_degree_name(corpus, np.flatnonzero(leaf == k)) for k in range(len(sets))]
    else:
        leaves = [_mixture_name([s]) for s in sets]
    levels = [_distinct(leaves)]
    node_sets: list[list[dict[frozenset[Task], int]]] = [[s] for s in sets]
    for up in reversed(parents[1:]):
        node_sets = [[s for k in np.flatnonzero(up == j) for s in node_sets[k]] for j in range(up.max() + 1)]
        levels.insert(
            0, _distinct([_mixture_name(group) if len(node_sets) > 1 else ROOT_NAME for group in node_sets])
        )
    return tuple(tuple(names) for names in levels)


def _degree_name(corpus: Corpus, members: np.ndarray) -> str:
    task = Task(corpus.entries[members[0]].tasks[0])
    captions = Counter(corpus.entries[m].caption.removeprefix("a photo with ") for m in members)
    words = captions.most_common(1)[0][0].split()
    return f"{TASK_NOUNS[task]}, {' '.join(words[:1])}"


def _mixture_name(sets: list[dict[frozenset[Task], int]]) -> str:
    """The tasks of at least half of the samples, joined: "low light + noise"."""
    total = sum(sum(s.values()) for s in sets)
    share = {task: sum(n for s in sets for tasks, n in s.items() if task in tasks) / total for task in Task}
    common = [TASK_NOUNS[task] for task in Task if share[task] >= 0.5]
    return " + ".join(common) or TASK_NOUNS[max(Task, key=lambda task: share[task])]


def _distinct(names: list[str]) -> list[str]:
    """Number names that occur more than once: "noise, medium 1", "noise, medium 2"."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(f"{name} {seen[name]}" if names.count(name) > 1 else name)
    return result


def purity(label: np.ndarray, truth: np.ndarray) -> float:
    """Share of samples whose cluster's commonest truth is their own."""
    return sum(Counter(truth[label == k].tolist()).most_common(1)[0][1] for k in np.unique(label)) / len(
        label
    )


def _report(
    corpus: Corpus, e: Tensor, means: np.ndarray, rows: np.ndarray, leaf: np.ndarray, seed: int
) -> dict[str, Any]:
    """Purity and adjusted Rand index of the tree's leaves, and of an unsupervised {1, 7, 19}, against types
    and degrees.
    """
    caption = np.unique([entry.caption for entry in corpus.entries], return_inverse=True)[1]
    kind = np.unique(["+".join(entry.tasks) for entry in corpus.entries], return_inverse=True)[1]
    report: dict[str, Any] = {
        "recipes": len(means),
        "samples": int(rows.sum()),
        "leaf_samples": np.bincount(leaf, rows).astype(int).tolist(),
        "leaf_degree_purity": purity(leaf, caption),
        "leaf_degree_rand": float(adjusted_rand_score(caption, leaf)),
    }
    if len(means) >= 19:
        known = corpus.recipe >= 0  # single windows, no recipe averaged
        points, index = e.double().numpy()[known], corpus.recipe[known]
        fine = cluster(points, np.ones(len(points)), 19, seed)
        middle = centers_of(points, np.ones(len(points)), fine)
        coarse = cluster(middle, np.bincount(fine), 7, seed)[fine]
        report["unsupervised"] = {
            "types_purity": purity(coarse, kind[index]),
            "types_rand": float(adjusted_rand_score(kind[index], coarse)),
            "degrees_purity": purity(fine, caption[index]),
            "degrees_rand": float(adjusted_rand_score(caption[index], fine)),
        }
    return report
