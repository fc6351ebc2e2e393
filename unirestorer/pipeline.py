"""The whole data flow on one screen: photo -> DR -> estimate -> route -> expert -> restored photo."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unirestorer.checkpoint import Checkpoint, find_checkpoint
from unirestorer.experts import DEFAULT_TILE_PX, ExpertBank
from unirestorer.imaging import load_image
from unirestorer.types import Decision, Estimate, Mode, Restoration, Route, Seconds, Tasks


class UniRestorer:
    """Restores photos and says why it did so. Methods may be called from several threads."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, *, keep: int = 4) -> None:
        """The model in an opened checkpoint; `keep` experts stay in memory. Raises ValueError."""
        self.folder, self.name = checkpoint.folder, checkpoint.folder.name
        self.mode: Mode = checkpoint.mode
        self.ranges, self.device, self.tree = checkpoint.ranges, device, checkpoint.tree()
        self.map = checkpoint.map() if checkpoint.has("map.npz") else None
        self.extractor = checkpoint.extractor().to(device)
        self.router = checkpoint.router(self.tree).to(device)
        names = self.tree.expert_names
        self.experts = ExpertBank(names, lambda i: checkpoint.expert(names[i]), device, keep)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str = "auto", revision: str | None = None, keep: int = 4
    ) -> UniRestorer:
        """Open a checkpoint: a folder, the name of one in `checkpoints/`, or a hub id "user/name".

        `device` is "auto" (CUDA where there is one), "cpu" or "cuda"; `keep` experts stay in memory. Raises
        ValueError.
        """
        where = choose_device(device)
        return cls(Checkpoint(find_checkpoint(name, revision)), where, keep=keep)

    @torch.inference_mode()
    def estimate(self, x: Tensor) -> Estimate:
        """Photos x (B, 3, H, W) in [0, 1] -> DR, estimate of its leaf's centre, uncertainty (Eq. 3 and 7)."""
        self.experts.guard(x, "")
        return self.router.estimate(self.extractor(x))

    @torch.inference_mode()
    def route(self, estimate: Estimate, tasks: Tasks = None, expert: str | None = None) -> Route:
        """Leaf, level and expert (Eq. 6): auto mode, or, with `tasks`, instruction mode, others pruned.

        A forced `expert` ("level-index") overrules the choice of expert alone. Raises ValueError for an
        unknown one, and for an instruction that is empty or leaves nothing.
        """
        route = self.router.route(estimate, self.tree.mask(tasks))
        if expert is None:
            return route
        number = self.tree.expert_number(expert)
        return replace(route, expert=torch.full_like(route.expert, number), forced=True)

    def inspect(
        self, x: Tensor, tasks: Tasks = None, expert: str | None = None, seconds: Seconds | None = None
    ) -> Decision:
        """What to do with photos x (B, 3, H, W) in [0, 1]; `seconds` may hold the stages before this one.

        Raises ValueError for another shape, and as `route` does.
        """
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape or not x.is_floating_point():
            raise ValueError(
                f"photos (B, 3, H, W) of floats in [0, 1] are needed, got {tuple(x.shape)} of {x.dtype}"
            )
        clock = Clock({} if seconds is None else seconds)
        estimate = self.estimate(x)  # e, e_deg, log_e_gran: (B, D) each
        clock.stop("estimate")
        route = self.route(estimate, tasks, expert)  # leaf_probs, level_probs, expert (B,)
        clock.stop("route")
        return Decision(estimate, route, clock.seconds)

    @torch.inference_mode()
    def apply(
        self,
        x: Tensor,
        decision: Decision,
        *,
        tile_px: int | None = DEFAULT_TILE_PX,
        progress: Callable[[float], None] | None = None,
    ) -> Restoration:
        """Restore photos x (B, 3, H, W) in [0, 1] as was decided.

        Raises ValueError for pixels that are not finite.
        """
        clock, expert = Clock(decision.seconds), decision.route.expert
        if len(expert) == 1:  # a batch loads as it goes
            with contextlib.suppress(torch.OutOfMemoryError):  # the bank will find a way
                self.experts.network(int(expert))
        clock.stop("load")
        image = self.experts(x, expert, tile_px=tile_px, progress=progress)  # (B, 3, H, W)
        clock.stop("restore")
        return Restoration(image, decision)

    def __call__(
        self,
        x: Tensor,
        *,
        tasks: Tasks = None,
        expert: str | None = None,
        tile_px: int | None = DEFAULT_TILE_PX,
        progress: Callable[[float], None] | None = None,
    ) -> Restoration:
        """Restore photos x (B, 3, H, W) in [0, 1]: `inspect`, then `apply`. Raises ValueError as they do."""
        return self.apply(x, self.inspect(x, tasks, expert), tile_px=tile_px, progress=progress)

    def restore(
        self,
        photo: str | os.PathLike[str] | Any,  # noqa: ANN401 - whatever load_image reads
        *,
        tasks: Tasks = None,
        expert: str | None = None,
        tile_px: int | None = DEFAULT_TILE_PX,
        progress: Callable[[float], None] | None = None,
    ) -> Restoration:
        """`__call__` for one photo (path, PIL image, uint8 or float array, tensor), a batch of 1."""
        clock = Clock({})
        x = load_image(photo)
        clock.stop("decode")
        decision = self.inspect(x, tasks, expert, clock.seconds)
        return self.apply(x, decision, tile_px=tile_px, progress=progress)


class Clock:
    """Adds the seconds of each stage to `seconds`."""

    def __init__(self, seconds: Seconds) -> None:
        self.seconds, self._last = seconds, time.perf_counter()

    def stop(self, stage: str) -> None:
        """End the stage that runs, and begin the next."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def choose_device(device: str) -> torch.device:
    """ "auto", "cpu" or "cuda" as a device. Raises ValueError for others and for a missing GPU."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available here: choose --device auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
