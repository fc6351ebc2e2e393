"""What several test files need."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.build.parts import add_expert, add_extractor, add_map, add_mode, add_router, add_tree
from training.config import LEAVES_PER_TASK
from unirestorer.config import ExtractorShape, NAFNetShape, RouterShape
from unirestorer.degradation.recipe import CLEAN_CAPTION, DEGREES
from unirestorer.extractor import Extractor
from unirestorer.map import NEIGHBORS, DegradationMap
from unirestorer.networks import build_network
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree
from unirestorer.types import Task

SHAPE = NAFNetShape(width=8, encoder=(1, 1), middle=1, decoder=(1, 1), window_px=96, unshuffle=1)
EXTRACTOR = ExtractorShape("resnet", layers=(1, 1, 1, 1), width=8, dim=512, view_px=224)
ROUTERS = RouterShape(hidden=64, layers=2)


def make_tiny_tree(dim: int = 512) -> DegradationTree:
    """The topology {1, 7, 19} around random centres; each leaf knows one task."""
    leaf_task = [task for task in Task for _ in range(LEAVES_PER_TASK[task])]
    parents = torch.tensor([list(Task).index(task) for task in leaf_task])
    leaves = F.normalize(torch.randn(len(leaf_task), dim), dim=-1)
    types = torch.stack([leaves[parents == i].mean(0) for i in range(len(Task))])
    first = [leaf_task.index(task) for task in leaf_task]
    return DegradationTree(
        (types.mean(0, keepdim=True), types, leaves),
        (torch.zeros(1, dtype=torch.long), torch.zeros(len(Task), dtype=torch.long), parents),
        tuple({frozenset({task}): 10} for task in leaf_task),
        (("all",), tuple(Task), tuple(f"{task}, degree {i - first[i]}" for i, task in enumerate(leaf_task))),
    )


def make_mixed_tree(dim: int = 512) -> DegradationTree:
    """The topology {1, 4, 8} around random centres; each leaf knows two pairs of tasks."""
    leaves = F.normalize(torch.randn(8, dim), dim=-1)
    parents = torch.arange(8) // 2
    middle = leaves.reshape(4, 2, dim).mean(1)
    tasks = [Task.LOWLIGHT, Task.DEBLUR, Task.DENOISE, Task.DEHAZE]
    pairs = [frozenset({tasks[i % 4], tasks[(i + shift) % 4]}) for i in range(8) for shift in (1, 2)]
    sets = tuple({pairs[2 * i]: 6, pairs[2 * i + 1]: 4} for i in range(8))
    words = [" + ".join(sorted(pairs[2 * i])) for i in range(8)]
    return DegradationTree(
        (middle.mean(0, keepdim=True), middle, leaves),
        (torch.zeros(1, dtype=torch.long), torch.zeros(4, dtype=torch.long), parents),
        sets,
        (("all",), tuple(words[::2]), tuple(words)),
    )


def make_tiny_map(tree: DegradationTree, points: int = 60) -> DegradationMap:
    """Random DRs near the leaves' centres, at random places."""
    leaf = torch.arange(points) % tree.leaves
    drs = F.normalize(tree.centers[-1][leaf] + 0.3 * torch.randn(points, tree.centers[-1].shape[1]), dim=-1)
    tasks = [next(iter(next(iter(tree.task_sets[i])))) for i in leaf.tolist()]
    return DegradationMap(
        xy=torch.randn(points, 2).numpy(),
        drs=drs.half().numpy(),
        leaf=leaf.numpy(),
        task=np.array(tasks),
        text=np.array([f"{task}, drawn" for task in tasks]),
        center_xy=torch.randn(len(tree.expert_names), 2).numpy(),
        gran_reference=torch.randn(NEIGHBORS).sort().values.numpy(),
        distance_reference=(1.4 + 0.1 * torch.randn(NEIGHBORS)).sort().values.numpy(),
    )


def make_tiny_checkpoint(folder: Path, *, mixed: bool = False) -> Path:
    """Write a complete checkpoint of random weights to `folder`; each expert changes a photo a little."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        captions = (CLEAN_CAPTION, *(f"a photo with {DEGREES[task][1][-1]}" for task in Task))
        extractor = Extractor(EXTRACTOR, captions)
        extractor.caption_features.copy_(F.normalize(torch.randn_like(extractor.caption_features), dim=-1))
        extractor.logit_scale.fill_(20.0)
        add_mode(folder, "mixed" if mixed else "single")
        add_extractor(folder, extractor.eval(), {"minutes": 0})

        tree = make_mixed_tree() if mixed else make_tiny_tree()
        add_tree(folder, tree, {"recipes": 0})
        for name in tree.expert_names:
            network = build_network(SHAPE)
            torch.nn.init.normal_(network.get_parameter("ending.weight"), std=0.02)
            add_expert(folder, name, SHAPE, network, {"steps": 0})

        router = Router(tree.centers[-1].shape[1], tree.expert_table, ROUTERS)
        router.std.fill_(tree.centers[-1].shape[1] ** -0.5)  # of unit vectors
        add_router(folder, router, {"steps": 0})
        add_map(folder, make_tiny_map(tree), {"points": 60})
    return folder
