"""The degradation tree: cluster centres per level, who descends from whom, and which leaves serve which
tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unirestorer.types import Task, Tasks, named_tasks

MASK_SHARE = 0.5  # leaves scoring at least this share of the best survive an instruction


@dataclass(frozen=True, eq=False)
class DegradationTree:
    """Levels of DR clusters, coarsest first (section 3.2). Experts are numbered level by level, as in
    `expert_names`.

    `centers[i]` (K_i, D) are the centres of level i in DR space, `parents[i]` (K_i,) the index of each node's
    parent in level i - 1 (zeros for level 0), `task_sets[leaf]` counts the task combinations of the leaf's
    training samples, and `names[i]` holds a name in words for each node of level i.
    """

    centers: tuple[Tensor, ...]
    parents: tuple[Tensor, ...]
    task_sets: tuple[dict[frozenset[Task], int], ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def levels(self) -> int:
        return len(self.centers)

    @property
    def leaves(self) -> int:
        return len(self.centers[-1])

    def check(self) -> None:
        """Raises ValueError when the parts do not fit together."""
        above = 1
        levels = zip(self.centers, self.parents, self.names, strict=True)
        for level, (centers, parents, names) in enumerate(levels):
            count = len(centers)
            whole = parents.dtype == torch.int64 and parents.shape == (count,) and len(names) == count
            if count == 0 or centers.ndim != 2 or not whole or parents.min() < 0 or parents.max() >= above:
                raise ValueError(f"the nodes of level {level} do not fit the level above or their names")
            above = count
        if len(self.task_sets) != above or not all(sum(sets.values()) > 0 for sets in self.task_sets):
            raise ValueError("every leaf needs its samples' tasks")

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Number of the first expert of each level."""
        sizes = [len(c) for c in self.centers]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    @cached_property
    def expert_table(self) -> Tensor:
        """(leaves, levels): the expert on each leaf's path at each level."""
        node = torch.arange(self.leaves)
        columns = []
        for level in reversed(range(self.levels)):
            columns.append(node + self.offsets[level])
            node = self.parents[level][node]
        return torch.stack(columns[::-1], 1)

    @cached_property
    def expert_names(self) -> tuple[str, ...]:
        """File names of the experts, "level-index", in order of their numbers."""
        return tuple(f"{level}-{index}" for level, c in enumerate(self.centers) for index in range(len(c)))

    def expert_number(self, name: str) -> int:
        """The number of the expert "level-index". Raises ValueError for an unknown one."""
        names = self.expert_names
        if name not in names:
            raise ValueError(f"unknown expert {name!r}: choose a level-index from {names[0]} to {names[-1]}")
        return names.index(name)

    def level_of(self, expert: int) -> tuple[int, int]:
        """(level, index within the level) of an expert's number."""
        level = max(i for i, offset in enumerate(self.offsets) if expert >= offset)
        return level, expert - self.offsets[level]

    def words(self, expert: int) -> str:
        """The expert's name in words: "rain, heavy"."""
        level, index = self.level_of(expert)
        return self.names[level][index]

    def leaf_task_probs(self, leaf_probs: Tensor) -> dict[Task, float]:
        """Probability of each task from one photo's leaf probabilities (leaves,): shares of the leaves'
        samples.
        """
        totals = dict.fromkeys(Task, 0.0)
        for prob, sets in zip(leaf_probs.tolist(), self.task_sets, strict=True):
            samples = sum(sets.values())
            for tasks, count in sets.items():
                for task in tasks:
                    totals[task] += prob * count / samples
        return totals

    def mask(self, tasks: Tasks) -> Tensor:
        """(leaves,) bool: which leaves an instruction keeps; None keeps all.

        A leaf scores the mean Jaccard overlap of its samples' tasks with the named ones; those with at least
        half of the best score stay. Raises ValueError when no task is named or no leaf knows any of them.
        """
        named = named_tasks(tasks)
        if named is None:
            return torch.ones(self.leaves, dtype=torch.bool)
        if not named:
            raise ValueError("an instruction needs at least one task; leave it out for auto mode")
        scores = torch.tensor([_overlap(sets, named) for sets in self.task_sets])
        if scores.max() <= 0:
            raise ValueError(f"no expert for {', '.join(sorted(named))}: name other tasks or use auto mode")
        return scores >= MASK_SHARE * scores.max()

    def nearest_leaf(self, e: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B,) nearest leaf centre of DRs e (B, D), among the `allowed` (leaves,) ones."""
        distance = torch.cdist(e, self.centers[-1].to(e))
        if allowed is not None:
            distance = distance.masked_fill(~allowed.to(e.device), torch.inf)
        return distance.argmin(1)


def _overlap(sets: dict[frozenset[Task], int], named: frozenset[Task]) -> float:
    shares = (count * len(tasks & named) / len(tasks | named) for tasks, count in sets.items())
    return sum(shares) / sum(sets.values())
