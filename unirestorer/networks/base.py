"""What the architectures have in common: stated size requirements, one place that pads, one normalisation."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module, ABC):
    """An expert, x (B,3,H,W) in [0,1] -> restored (B,3,H,W), single precision, not clamped; any H, W >= 1.

    What it requires of sizes is data, in pixels: `body` takes sides that `multiple` divides, so tiles start
    on it, and a tile needs a margin of `halo_px` to be restored as in the whole photo. Nothing is remembered
    between calls, so threads may share a module.
    """

    def __init__(self, *, multiple: int, halo_px: int) -> None:
        super().__init__()
        self.multiple, self.halo_px = multiple, halo_px

    def forward(self, x: Tensor) -> Tensor:
        """The photo is mirrored at the bottom and right, or its border repeated where it is too small."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        mode = "reflect" if bottom < height and right < width else "replicate"
        padded = F.pad(x, (0, right, 0, bottom), mode=mode) if bottom or right else x
        return self.body(padded)[..., :height, :width].float()

    @abstractmethod
    def body(self, x: Tensor) -> Tensor:
        """`forward` for x (B,3,H,W) whose sides `multiple` divides, in any precision."""


def conv(channels: int, channels_out: int, side: int, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps height and width."""
    return nn.Conv2d(channels, channels_out, side, padding=side // 2, groups=groups, bias=False)


class LayerNorm2d(nn.Module):
    """Normalises the channels of every pixel, (B,C,H,W) -> (B,C,H,W), always in single precision."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).float()  # (B, H, W, C), no copy where x is channels-last
        pixels = F.layer_norm(pixels, self.weight.shape, self.weight.float(), self.bias.float(), self.eps)
        return pixels.permute(0, 3, 1, 2).to(x.dtype)
