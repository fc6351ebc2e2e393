"""The bank of experts: each a file of its own, loaded when a photo needs it, a few kept warm.

Memory, in bytes of tensors, for photos of B x H x W pixels in tiles of T pixels:

    2 * 12 * B * H * W                          the photos and the result, where the photos lie
    + keep * 4 * parameters                     the warm experts, on the bank's device
    + c * width * (T + 2 * (halo + m) + m)^2    one tile with its halo, there, too; m = the network's multiple
    + 4 * nafnet.STRIPE_BYTES                   what NAFNet computes at once on a CPU

where T is at most the longer side, so that the third term is bounded by the tile, whatever the photo: for
the shipped experts with tiles of 1024 px 0.70 GB (noise, JPEG), 0.97 GB (windows of 192 px) or 1.18 GB
(windows of 256 px: darkness, mixtures). c is 12 for NAFNet on a CPU, 24 on a GPU; 59 for RetinexFormer, 110
for Restormer: bytes per pixel and channel of the first level; libraries' scratch comes on top. A pass holds
as many photos as fit a tile's area, at least one; a batch of several passes copies the photos of one of them.
What a GPU cannot hold even so runs in smaller tiles, then on the CPU: see `ExpertBank.__call__`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from unirestorer.imaging import run_tiled
from unirestorer.networks import Network

DEFAULT_TILE_PX = 1024
SMALLEST_TILE_PX = 64
CPU = torch.device("cpu")

# Asked before every estimate (expert ""), expert and tile, with the photos; what it raises ends the work.
Guard = Callable[[Tensor, str], None]

logger = logging.getLogger(__name__)


class ExpertBank:
    """Dispatches photos to experts. `load(number)` builds an expert's network with its weights, in evaluation
    mode.

    Threads may share a bank: loading happens under a lock and a network in use is held by its caller. Whoever
    serves visitors sets `guard`, which may end a piece of work at its next tile.
    """

    def __init__(
        self, names: tuple[str, ...], load: Callable[[int], Network], device: torch.device, keep: int = 4
    ) -> None:
        self.names, self.device, self._load, self._keep = names, device, load, keep
        self.guard: Guard = lambda x, expert: None
        self._warm: OrderedDict[int, Network] = OrderedDict()
        self._lock = threading.Lock()

    def network(self, expert: int) -> Network:
        """The network of one expert, from memory or from its file.

        Raises ValueError for a number out of range.
        """
        self.name(expert)
        with self._lock:
            network = self._warm.pop(expert, None)
            if network is None:
                network = self._loaded(expert, self.device)
            self._warm[expert] = network
            while len(self._warm) > self._keep:
                self._warm.popitem(last=False)
        return network

    def name(self, expert: int) -> str:
        """The name of the expert with this number. Raises ValueError for a number out of range."""
        if not 0 <= expert < len(self.names):
            last = len(self.names) - 1
            raise ValueError(f"unknown expert number {expert}: this model has experts 0 to {last}")
        return self.names[expert]

    @property
    def warm(self) -> tuple[Network, ...]:
        """The networks in memory."""
        with self._lock:
            return tuple(self._warm.values())

    def release(self) -> None:
        """Forget all warm experts; those in use live on until their callers are done."""
        with self._lock:
            self._warm.clear()

    def _loaded(self, expert: int, device: torch.device) -> Network:
        return self._load(expert).to(device).to(memory_format=torch.channels_last).eval()

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

        Photos are grouped by expert, so each is loaded once; the result lies where x does. A photo in black
        and white stays one: the experts, who know coloured ones, would leave faint tints. `tile_px` bounds
        the side of what a network sees at once (None: the whole photo). Where memory runs out, tiles are
        halved, down to `SMALLEST_TILE_PX`, then the CPU takes over from a GPU; each step is logged as a
        warning. Raises ValueError for other shapes and for values that are not finite.
        """
        if x.ndim != 4 or x.shape[1] != 3 or expert.shape != x.shape[:1]:
            shapes = f"{tuple(x.shape)} and {tuple(expert.shape)}"
            raise ValueError(f"photos (B, 3, H, W) and expert numbers (B,) are needed, got {shapes}")
        if x.numel() and not all(map(math.isfinite, torch.stack(x.aminmax()).tolist())):  # nan passes through
            raise ValueError("the photo holds values that are not finite: give pixels in [0, 1]")
        restored: Tensor | None = None
        at_once = len(x) if tile_px is None else tile_px**2 // max(x.shape[-2] * x.shape[-1], 1)
        done = 0
        for number in expert.unique().tolist():
            name = self.name(number)
            self.guard(x, name)
            for rows in (expert == number).nonzero().flatten().to(x.device).split(max(at_once, 1)):

                def advance(share: float, done: int = done, count: int = len(rows), name: str = name) -> None:
                    if share < 1:
                        self.guard(x, name)
                    if progress is not None:
                        progress((done + share * count) / len(x))

                part = x[rows] if len(rows) > 1 else x.narrow(0, int(rows), 1)  # a large photo is not copied
                output = self._pass(number, part.to(torch.float32), tile_px, advance)
                for photo, image in zip(part, output, strict=True):
                    if torch.equal(photo[0], photo[1]) and torch.equal(photo[1], photo[2]):
                        image.copy_(image.mean(0))
                if len(rows) == len(x):
                    return output
                if restored is None:
                    restored = torch.empty_like(x, dtype=torch.float32)
                restored[rows] = output
                done += len(rows)
        return x.to(torch.float32) if restored is None else restored  # no photo at all

    def _pass(self, number: int, x: Tensor, tile_px: int | None, progress: Callable[[float], None]) -> Tensor:
        """One expert over x (B, 3, H, W), with smaller tiles and then the CPU where memory runs out."""
        device, tile = self.device, tile_px
        while True:
            try:
                network = self.network(number) if device == self.device else self._loaded(number, device)
                return _run(network, x, device, tile, progress)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                longest = max(x.shape[-2:])
                tile = min(tile or longest, longest) // 2
                if tile < SMALLEST_TILE_PX and device.type == "cpu":
                    raise
            # Not in the handler: while it runs, the traceback holds the failed pass's tensors.
            if tile < SMALLEST_TILE_PX:
                self.release()
                device, tile = CPU, tile_px
                logger.warning("%s: out of memory even in small tiles: the CPU takes over", self.device)
            else:
                logger.warning("%s: out of memory: trying tiles of %d px", device, tile)
            torch.cuda.empty_cache()  # nothing where CUDA was never used


def _run(
    network: Network, x: Tensor, device: torch.device, tile_px: int | None, progress: Callable[[float], None]
) -> Tensor:
    """The network's output for x (B, 3, H, W), in [0, 1] and where x lies; only a tile at a time is moved."""

    def there_and_back(tile: Tensor) -> Tensor:
        moved = tile.to(device, torch.float32, memory_format=torch.channels_last)
        return network(moved).clamp(0, 1).to(x.device)

    tile = max(*x.shape[-2:], network.multiple) if tile_px is None else tile_px
    return run_tiled(there_and_back, x, tile, network.halo_px, network.multiple, progress).clamp_(0, 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, PyTorch's, or that of a library with an allocator of its own.

    Only a GPU's has a class of its own; words tell the others apart.
    """
    words = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    kinds = MemoryError | torch.OutOfMemoryError
    return isinstance(error, kinds) or any(word in str(error).lower() for word in words)
