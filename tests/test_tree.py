"""The degradation tree: paths, names, instruction masks and leaf probabilities, each by hand."""

import pytest
import torch
from helpers import make_tiny_tree

from training.config import LEAVES_PER_TASK
from unirestorer.tree import DegradationTree
from unirestorer.types import Task

NOISE, RAIN, HAZE = Task.DENOISE, Task.DERAIN, Task.DEHAZE
# Four leaves as in a mixed tree: how many samples of which combination each holds.
SETS = (
    {frozenset({NOISE}): 4, frozenset({NOISE, RAIN}): 4},
    {frozenset({RAIN}): 1, frozenset({NOISE, RAIN, HAZE}): 3},
    {frozenset({NOISE, HAZE}): 2, frozenset({HAZE}): 2},
    {frozenset({NOISE, RAIN}): 3, frozenset({HAZE}): 1},
)


def tree_of(*parents: list[int], sets: tuple[dict[frozenset[Task], int], ...] = SETS) -> DegradationTree:
    """A tree from each level's parents; a level's centres are unit vectors of their own."""
    return DegradationTree(
        tuple(torch.eye(8)[: len(level)] for level in parents),
        tuple(torch.tensor(level) for level in parents),
        sets,
        tuple(tuple(f"level {i}, node {j}" for j in range(len(level))) for i, level in enumerate(parents)),
    )


SMALL = tree_of([0], [0, 0], [0, 0, 1, 1])  # {1, 2, 4}; experts 0 | 1 2 | 3 4 5 6


@pytest.mark.parametrize(
    ("parents", "table"),
    [
        (([0], [0, 0], [0, 0, 1, 1]), [[0, 1, 3], [0, 1, 4], [0, 2, 5], [0, 2, 6]]),
        (([0], [0, 0], [1, 0, 0, 1]), [[0, 2, 3], [0, 1, 4], [0, 1, 5], [0, 2, 6]]),
        (([0], [0, 0], [1, 1, 1, 0]), [[0, 2, 3], [0, 2, 4], [0, 2, 5], [0, 1, 6]]),
        (([0], [0, 0], [1, 0, 1], [2, 0, 1, 2]), [[0, 2, 5, 6], [0, 2, 3, 7], [0, 1, 4, 8], [0, 2, 5, 9]]),
        (([0, 0], [1, 0, 1, 0]), [[1, 2], [0, 3], [1, 4], [0, 5]]),
        (([0, 0, 0, 0],), [[0], [1], [2], [3]]),
    ],
    ids=["1,2,4", "permuted", "lopsided", "1,2,3,4", "no root", "leaves alone"],
)
def test_every_leafs_path(parents: tuple[list[int], ...], table: list[list[int]]) -> None:
    tree = tree_of(*parents)
    assert tree.expert_table.tolist() == table
    assert tree.levels == len(parents)
    assert tree.leaves == 4
    assert len(tree.expert_names) == sum(map(len, parents))


def test_names_and_numbers_agree() -> None:
    assert SMALL.expert_names == ("0-0", "1-0", "1-1", "2-0", "2-1", "2-2", "2-3")
    for number, name in enumerate(SMALL.expert_names):
        assert SMALL.expert_number(name) == number
        level, index = SMALL.level_of(number)
        assert f"{level}-{index}" == name
        assert SMALL.words(number) == f"level {level}, node {index}"


@pytest.mark.parametrize(
    "name", ["3-0", "2-4", "0-1", "", "all", "1", "1-", "-1-0", "01-0", "1-0 ", "1_0", "٢-٠"]
)
def test_an_unknown_expert_is_named_and_the_range_told(name: str) -> None:
    with pytest.raises(ValueError, match="from 0-0 to 2-3") as caught:
        SMALL.expert_number(name)
    assert repr(name) in str(caught.value)


# Instructions


def test_no_instruction_keeps_every_leaf() -> None:
    assert SMALL.mask(None).tolist() == [True] * 4


@pytest.mark.parametrize("task", Task)
def test_single_keeps_exactly_the_tasks_own_leaves(task: Task) -> None:
    tree = make_tiny_tree(dim=8)
    first = sum(LEAVES_PER_TASK[t] for t in list(Task)[: list(Task).index(task)])
    kept = tree.mask({task}).nonzero().flatten().tolist()
    assert kept == list(range(first, first + LEAVES_PER_TASK[task]))
    assert tree.expert_table[kept][:, 1].unique().tolist() == [1 + list(Task).index(task)]


def test_single_keeps_the_leaves_of_several_tasks() -> None:
    tree = make_tiny_tree(dim=8)
    assert torch.equal(tree.mask({NOISE, HAZE}), tree.mask({NOISE}) | tree.mask({HAZE}))
    assert tree.mask(Task).all()


@pytest.mark.parametrize(
    ("tasks", "kept"),
    [
        # mean overlaps 6/8, 1/4, 1/4, 1.5/4: half of the best is exactly the last one's
        ({NOISE}, [True, False, False, True]),
        # 2/8, (1 + 1)/4, 0, 1.5/4
        ({RAIN}, [True, True, False, True]),
        # 0, 1/4, 3/4, 1/4
        ({HAZE}, [False, False, True, False]),
        # (2 + 4)/8, (0.5 + 2)/4, (2/3)/4, 3/4
        ({NOISE, RAIN}, [True, True, False, True]),
        # 4/3 + 8/3 of 8, (1/3 + 3)/4, (4/3 + 2/3)/4, (2 + 1/3)/4
        ({NOISE, RAIN, HAZE}, [True, True, True, True]),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else "",
)
def test_mixed_masks_by_jaccard_overlap(tasks: set[Task], kept: list[bool]) -> None:
    assert SMALL.mask(tasks).tolist() == kept
    assert SMALL.mask(sorted(tasks)).tolist() == kept  # any iterable, names or members
    assert SMALL.mask(iter([str(task) for task in tasks])).tolist() == kept


def test_a_clean_leaf_is_never_kept() -> None:
    tree = tree_of([0], [0, 0], sets=({frozenset(): 9}, {frozenset({NOISE}): 9}))
    assert tree.mask({NOISE}).tolist() == [False, True]


def test_an_empty_instruction_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        SMALL.mask([])


@pytest.mark.parametrize("tasks", [{Task.DEJPEG}, {Task.DEJPEG, Task.DESNOW}], ids=str)
def test_a_task_that_no_leaf_knows_is_named(tasks: set[Task]) -> None:
    with pytest.raises(ValueError, match="no expert for") as caught:
        SMALL.mask(tasks)
    assert all(task in str(caught.value) for task in tasks)


def test_a_name_that_is_no_task_is_refused_beside_a_known_one() -> None:
    with pytest.raises(ValueError, match="sharpen"):
        SMALL.mask({NOISE, "sharpen"})


# Probabilities and places


def test_task_probabilities_are_shares_of_the_leaves_samples() -> None:
    probs = SMALL.leaf_task_probs(torch.tensor([0.5, 0.25, 0.25, 0.0]))
    assert probs[NOISE] == pytest.approx(0.5 * 8 / 8 + 0.25 * 3 / 4 + 0.25 * 2 / 4)
    assert probs[RAIN] == pytest.approx(0.5 * 4 / 8 + 0.25 * 4 / 4)
    assert probs[HAZE] == pytest.approx(0.25 * 3 / 4 + 0.25 * 4 / 4)
    assert set(probs) == set(Task)
    assert all(probs[task] == 0 for task in set(Task) - {NOISE, RAIN, HAZE})


def test_task_probabilities_of_a_single_tree_sum_to_one() -> None:
    tree = make_tiny_tree(dim=8)
    for seed in range(5):
        leaf_probs = torch.randn(19, generator=torch.Generator().manual_seed(seed)).softmax(0)
        assert sum(tree.leaf_task_probs(leaf_probs).values()) == pytest.approx(1, abs=1e-6)


def test_nearest_leaf_with_and_without_a_mask() -> None:
    e = torch.eye(8)[:4] + 0.2 * torch.eye(8)[[1, 2, 3, 0]]  # near leaf i, then i + 1
    assert SMALL.nearest_leaf(e).tolist() == [0, 1, 2, 3]
    assert SMALL.nearest_leaf(e, torch.tensor([False, True, True, True])).tolist() == [1, 1, 2, 3]
    assert SMALL.nearest_leaf(e, torch.tensor([True, False, True, False])).tolist() == [0, 2, 2, 0]
    assert SMALL.nearest_leaf(e, torch.tensor([False, False, False, True])).tolist() == [3] * 4
    assert SMALL.nearest_leaf(e.half().float()).shape == (4,)
