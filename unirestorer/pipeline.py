"""The whole data flow on one screen: photo -> DR -> estimate -> route -> expert -> restored photo."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unirestorer.checkpoint import Checkpoint, find_checkpoint
from unirestorer.experts import DEFAULT_TILE_PX, ExpertBank
from unirestorer.extractor import Extractor
from unirestorer.imaging import load_image
from unirestorer.map import DegradationMap
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree
from unirestorer.types import Estimate, Restoration, Route, Task


class UniRestorer:
    """Restores photos and says why it did so. Methods may be called from several threads."""

    def __init__(
        self,
        extractor: Extractor,
        tree: DegradationTree,
        router: Router,
        experts: ExpertBank,
        map_: DegradationMap | None = None,
        folder: Path | None = None,
    ) -> None:
        self.extractor, self.tree, self.router, self.experts, self.map = (
            extractor,
            tree,
            router,
            experts,
            map_,
        )
        self.device = experts.device
        self.folder = folder  # of the checkpoint
        self.name = folder.name if folder else ""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str = "auto", revision: str | None = None, keep: int = 4
    ) -> UniRestorer:
        """Open a checkpoint: a folder, the name of one in `checkpoints/`, or a hub id "user/name".

        `device` is "auto" (CUDA where there is one), "cpu" or "cuda"; `keep` experts stay in memory. Raises
        ValueError.
        """
        where = choose_device(device)
        return cls.from_checkpoint(Checkpoint(find_checkpoint(name, revision)), where, keep=keep)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, where: torch.device, *, keep: int = 4) -> UniRestorer:
        """The model in an opened checkpoint. Raises ValueError."""
        tree = checkpoint.tree()
        bank = ExpertBank(tree.expert_names, lambda i: checkpoint.expert(tree.expert_names[i]), where, keep)
        map_ = checkpoint.map() if checkpoint.has("map.npz") else None
        return cls(
            checkpoint.extractor().to(where),
            tree,
            checkpoint.router(tree).to(where),
            bank,
            map_,
            checkpoint.folder,
        )

    @torch.inference_mode()
    def estimate(self, x: Tensor) -> Estimate:
        """Photos x (B, 3, H, W) in [0, 1] -> DR, estimate of its leaf's centre, uncertainty (Eq. 3 and 7)."""
        return self.router.estimate(self.extractor(x))

    @torch.inference_mode()
    def route(self, estimate: Estimate, tasks: Iterable[Task] | None = None) -> Route:
        """Leaf, level and expert (Eq. 6): auto mode, or, with `tasks`, instruction mode with the other
        branches pruned.

        Raises ValueError when the instruction is empty or leaves nothing.
        """
        return self.router.route(estimate, self.tree.mask(tasks))

    def inspect(self, x: Tensor, tasks: Iterable[Task] | None = None) -> Restoration:
        """The decision alone, for photos x (B, 3, H, W): a `Restoration` whose image has no pixels.

        Raises ValueError as `route` does.
        """
        clock = Clock()
        estimate = self.estimate(x)  # e, e_deg, log_e_gran: (B, D) each
        clock.stop("estimate")
        route = self.route(estimate, tasks)  # leaf_probs, level_probs, expert (B,)
        clock.stop("route")
        return Restoration(x.new_empty(len(x), 3, 0, 0), estimate, route, clock.seconds)

    def __call__(
        self,
        x: Tensor,
        *,
        tasks: Iterable[Task] | None = None,
        expert: str | None = None,
        tile_px: int | None = DEFAULT_TILE_PX,
        progress: Callable[[float], None] | None = None,
    ) -> Restoration:
        """Restore photos x (B, 3, H, W) in [0, 1]. A forced `expert` ("level-index") overrules the route's
        own choice.

        Raises ValueError for unknown experts, empty instructions and pixels that are not finite.
        """
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape or not x.is_floating_point():
            raise ValueError(
                f"photos (B, 3, H, W) of floats in [0, 1] are needed, got {tuple(x.shape)} of {x.dtype}"
            )
        forced = None if expert is None else self.tree.expert_number(expert)
        decision = self.inspect(x, tasks)
        route = decision.route
        if forced is not None:
            route = replace(route, expert=torch.full_like(route.expert, forced))
        result = self.apply(x, decision.estimate, route, tile_px=tile_px, progress=progress)
        return replace(result, seconds={**decision.seconds, **result.seconds})

    @torch.inference_mode()
    def apply(
        self,
        x: Tensor,
        estimate: Estimate,
        route: Route,
        *,
        tile_px: int | None = DEFAULT_TILE_PX,
        progress: Callable[[float], None] | None = None,
    ) -> Restoration:
        """Restore photos x (B, 3, H, W) by a route that is known already: the second half of `__call__`.

        A photo in black and white stays one; the experts, who know coloured ones, would leave faint tints.
        """
        clock = Clock()
        if len(route.expert) == 1:  # a batch loads as it goes
            with contextlib.suppress(torch.OutOfMemoryError):  # the bank will find a way
                self.experts.network(int(route.expert))
        clock.stop("load")
        image = self.experts(x, route.expert, tile_px=tile_px, progress=progress)  # (B, 3, H, W)
        for photo, restored in zip(x, image, strict=True):
            if torch.equal(photo[0], photo[1]) and torch.equal(photo[1], photo[2]):
                restored.copy_(restored.mean(0))
        clock.stop("restore")
        return Restoration(image, estimate, route, clock.seconds)

    def restore(
        self,
        photo: str | os.PathLike[str] | Any,  # noqa: ANN401 - whatever load_image reads
        *,
        tasks: Iterable[Task] | None = None,
        expert: str | None = None,
        tile_px: int | None = DEFAULT_TILE_PX,
        progress: Callable[[float], None] | None = None,
    ) -> Restoration:
        """Restore one photo (path, PIL image, uint8 or float array, tensor); see `__call__`.

        The result's batch is 1.
        """
        clock = Clock()
        x = load_image(photo)
        clock.stop("decode")
        result = self(x, tasks=tasks, expert=expert, tile_px=tile_px, progress=progress)
        return replace(result, seconds={**clock.seconds, **result.seconds})


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, stage: str) -> None:
        """End the stage that runs, and begin the next."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def choose_device(device: str) -> torch.device:
    """ "auto", "cpu" or "cuda" as a device. Raises ValueError for others and for a missing GPU."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available here: choose --device auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
