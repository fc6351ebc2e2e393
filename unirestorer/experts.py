"""The bank of experts: each a file of its own, loaded when a photo needs it, a few kept warm."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unirestorer.imaging import run_tiled

DEFAULT_TILE_PX = 768


class ExpertBank:
    """Dispatches photos to experts. `load(number)` builds an expert's network with its weights, in evaluation
    mode.

    Threads may share a bank: loading happens under a lock and a network in use is held by its caller.
    """

    def __init__(
        self, names: tuple[str, ...], load: Callable[[int], nn.Module], device: torch.device, keep: int = 4
    ) -> None:
        self.names = names
        self.device = device
        self._load = load
        self._keep = keep
        self._warm: OrderedDict[int, nn.Module] = OrderedDict()
        self._lock = threading.Lock()

    def network(self, expert: int) -> nn.Module:
        """The network of one expert, from memory or from its file.

        Raises ValueError for a number out of range.
        """
        if not 0 <= expert < len(self.names):
            raise ValueError(
                f"unknown expert number {expert}: this model has experts 0 to {len(self.names) - 1}"
            )
        with self._lock:
            network = self._warm.pop(expert, None)
            if network is None:
                network = self._load(expert).to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            self._warm[expert] = network
            while len(self._warm) > self._keep:
                self._warm.popitem(last=False)
        return network

    @torch.inference_mode()
    def __call__(
        self,
        x: Tensor,
        expert: Tensor,
        *,
        tile_px: int | None = DEFAULT_TILE_PX,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """x (B, 3, H, W) in [0, 1], expert (B,) -> restored (B, 3, H, W) in [0, 1], single precision.

        Photos are grouped by expert, so each is loaded once. `tile_px` bounds the side of what a network sees
        at once (None: the whole photo). Raises ValueError for other shapes and for values that are not
        finite.
        """
        if x.ndim != 4 or x.shape[1] != 3 or expert.shape != x.shape[:1]:
            raise ValueError(
                "photos (B, 3, H, W) and expert numbers (B,) are needed, "
                f"got {tuple(x.shape)} and {tuple(expert.shape)}"
            )
        if not torch.isfinite(x).all():
            raise ValueError(
                "the photo holds values that are not finite (NaN or infinity): give pixels in [0, 1]"
            )
        restored = torch.empty_like(x, dtype=torch.float32)
        for number in expert.unique().tolist():
            rows = (expert == number).to(x.device)
            network = self.network(number)
            part = x[rows].to(self.device, torch.float32, memory_format=torch.channels_last)
            if tile_px is None:
                output = network(part)
            else:
                output = run_tiled(network, part, tile_px, network.halo_px, network.multiple, progress)  # type: ignore[arg-type]
            restored[rows] = output.clamp(0, 1).to(restored)
        return restored
