"""NAFNet: a restoration network without nonlinear activations.

Chen et al., "Simple Baselines for Image Restoration", ECCV 2022. Its pooled statistics become local at test
time, as in Chu et al., "Improving Image Restoration by Revisiting Global Information Aggregation", ECCV 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unirestorer.config import NetworkConfig


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend x (B,C,H,W) at the bottom and right to sides that `multiple` divides.

    The photo is mirrored, or its border repeated where it is too small for that.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom == 0 and right == 0:
        return x
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)


def window_means(x: Tensor, window: int) -> Tensor:
    """Means of x (B,C,H,W) over every place of a window that lies inside x, in single precision.

    The window is (h, w) = (min(window, H), min(window, W)); the result is (B,C,H-h+1,W-w+1).
    """
    sides = [min(window, size) for size in x.shape[-2:]]
    means = x.float()
    for dim, side in zip((2, 3), sides, strict=True):
        if side == x.shape[dim]:
            means = means.sum(dim, keepdim=True)
        else:
            strips = means.split(32, 5 - dim)               # they fit the processor's cache: twice as fast
            means = torch.cat([_window_sums(strip, dim, side) for strip in strips], 5 - dim)
    return means / (sides[0] * sides[1])


def _window_sums(x: Tensor, dim: int, side: int) -> Tensor:
    """Sums of `side` neighbours along `dim`, by doubling: a sum of 2n is two sums of n.

    Three times as fast here as an integral image, whose large totals would also cost digits.
    """
    if side == 1:
        return x
    half = _window_sums(x, dim, side // 2)
    count = half.shape[dim] - side // 2
    total = half.narrow(dim, 0, count) + half.narrow(dim, side // 2, count)
    if side % 2 == 0:
        return total
    return total.narrow(dim, 0, count - 1) + x.narrow(dim, side - 1, count - 1)


class LayerNorm2d(nn.Module):
    """Normalises the channels of every pixel, (B,C,H,W) -> (B,C,H,W), always in single precision."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).float()              # (B, H, W, C), no copy where x is channels-last
        pixels = F.layer_norm(pixels, self.weight.shape, self.weight.float(), self.bias.float(), self.eps)
        return pixels.permute(0, 3, 1, 2).to(x.dtype)


def simple_gate(x: Tensor) -> Tensor:
    """Product of the two halves of the channels: (B,2C,H,W) -> (B,C,H,W)."""
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFBlock(nn.Module):
    """NAFNet's block (Fig. 3), (B,C,H,W) -> (B,C,H,W); `window` is the pooling window's side."""

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = LayerNorm2d(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = nn.Conv2d(channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.feed = nn.Conv2d(channels, 2 * channels, 1)
        self.feed_out = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = simple_gate(self.depthwise(self.expand(self.norm1(x))))
        x = x + self.beta * self.project(self.attend(y))
        return x + self.gamma * self.feed_out(simple_gate(self.feed(self.norm2(x))))

    def attend(self, y: Tensor) -> Tensor:
        """Simplified channel attention: y * conv(mean of y), (B,C,H,W) -> (B,C,H,W).

        In training the mean is over the whole map; at test time over the window around each pixel, moved
        inside the map at its borders. There the means repeat, so the convolution runs first.
        """
        height, width = y.shape[-2:]
        if self.training or (height <= self.window and width <= self.window):
            return y * self.attention(y.mean((2, 3), keepdim=True))
        scale = self.attention(window_means(y, self.window).to(y.dtype))
        missing_h, missing_w = (self.window - 1 if size > self.window else 0 for size in (height, width))
        left, top = missing_w // 2, missing_h // 2
        return y * F.pad(scale, (left, missing_w - left, top, missing_h - top), mode="replicate")


class NAFNet(nn.Module):
    """x (B,3,H,W) in [0,1] -> restored (B,3,H,W), single precision, not clamped; any H, W >= 1.

    The untrained network is the identity. Nothing is remembered between calls, so threads may share a module.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, depth = config.width, len(config.encoder)
        self.config = config
        self.unshuffle = config.unshuffle
        self.multiple = config.unshuffle * 2**depth         # pixels
        window_px = -(-config.window_px // self.multiple) * self.multiple

        def blocks(count: int, level: int) -> nn.Sequential:
            window = window_px // (config.unshuffle * 2**level)
            return nn.Sequential(*(NAFBlock(width * 2**level, window) for _ in range(count)))

        stem = 3 * config.unshuffle**2
        self.intro = nn.Conv2d(stem, width, 3, padding=1)
        self.encoder = nn.ModuleList(blocks(count, level) for level, count in enumerate(config.encoder))
        self.down = nn.ModuleList(
            nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 2, stride=2) for i in range(depth)
        )
        self.middle = blocks(config.middle, depth)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 1, bias=False), nn.PixelShuffle(2))
            for i in range(depth, 0, -1)
        )
        self.decoder = nn.ModuleList(blocks(count, depth - 1 - i) for i, count in enumerate(config.decoder))
        self.ending = nn.Conv2d(width, stem, 3, padding=1)
        for parameter in self.ending.parameters():
            nn.init.zeros_(parameter)

    @property
    def halo_px(self) -> int:
        """Reach of the convolutions and of two pooling windows, one behind the other, in pixels, rounded up
        to `multiple`.

        A window reaches half its side, a 3x3 convolution one pixel of its scale, a change of scale at most
        one of the finer. Statistics pooled a third time reach further still, by so little that it cannot be
        seen; with one window alone, the experts for haze showed steps above 1/255.
        """
        config, depth = self.config, len(self.config.encoder)
        reach = 2 * (config.window_px // 2)
        reach += 2 * self.unshuffle + self.unshuffle - 1    # intro and ending; the unshuffled stem
        for level, count in enumerate((*config.encoder, config.middle)):
            back = config.decoder[depth - 1 - level] if level < depth else 0
            reach += self.unshuffle * 2**level * (count + back + (level < depth))
        return -(-reach // self.multiple) * self.multiple

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        residual = self.body(pad_to_multiple(x, self.multiple))
        return x.float() + residual[..., :height, :width].float()

    def body(self, x: Tensor) -> Tensor:
        """The residual of x (B,3,H,W), whose sides `multiple` divides."""
        x = F.pixel_unshuffle(x, self.unshuffle).contiguous(memory_format=torch.channels_last)
        x = self.intro(x)
        skips = []
        for encoder, down in zip(self.encoder, self.down, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, decoder in zip(self.up, self.decoder, strict=True):
            x = decoder(up(x) + skips.pop())
        return F.pixel_shuffle(self.ending(x), self.unshuffle)
