"""NAFNet: a restoration network without nonlinear activations.

Chen et al., "Simple Baselines for Image Restoration", ECCV 2022. Its pooled statistics become local at test
time, as in Chu et al., "Improving Image Restoration by Revisiting Global Information Aggregation", ECCV 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unirestorer.config import NAFNetShape
from unirestorer.networks.base import LayerNorm2d, Network, conv

STRIPE_BYTES = 8 * 2**20  # twice what two cores' caches hold, since a stripe's first and last rows cost extra


def takes_all_rows(x: Tensor) -> bool:
    """Whether steps take all of x, not stripes: a gradient needs their results, and a GPU is faster so."""
    return torch.is_grad_enabled() or x.device.type != "cpu"


def stripes(x: Tensor, channels: int) -> list[tuple[int, int]]:
    """Ranges of rows of x (B,C,H,W), of which maps with so many `channels` have `STRIPE_BYTES`.

    Several steps done for one range after another need no memory for what lies between them, which then stays
    in the processor's cache: half the time and less than half the memory of whole maps.
    """
    rows = max(STRIPE_BYTES // (x.shape[0] * channels * x.shape[3] * x.element_size()), 1)
    return [(top, min(top + rows, x.shape[2])) for top in range(0, x.shape[2], rows)]


class LocalMeans:
    """Means of x (B,C,H,W) over the window around each pixel, moved inside x at its borders, in single
    precision.

    The window is (min(window, H), min(window, W)). A sum over 96 x 96 pixels is one over 6 x 6 that are 16
    apart, then one over 4 x 4 that are 4 apart, then over 4 x 4 neighbours. Only the first of these is kept
    for the whole map.
    """

    def __init__(self, x: Tensor, window: int) -> None:
        self.height, self.window = x.shape[2], window
        self.tall, self.wide = (size > window for size in x.shape[-2:])
        small = [dim for dim, larger in ((2, self.tall), (3, self.wide)) if not larger]
        x = x.float().mean(small, keepdim=True) if small else x.float()
        self.factors = window_factors(window) if self.tall or self.wide else []
        self.coarse = self._sums(x, self.factors[0], window // self.factors[0]) if self.factors else x

    def rows(self, top: int, bottom: int) -> Tensor:
        """The means of the rows from `top` to before `bottom`, (B,C,bottom-top,W); a side that the window
        covers is 1.
        """
        sums, above, below = self.coarse, 0, 0
        before, after = (self.window - 1) // 2, self.window - 1 - (self.window - 1) // 2
        if self.tall:
            first, last = (min(max(y - before, 0), self.height - self.window) for y in (top, bottom - 1))
            above = min(max(before - top, 0), bottom - 1 - top)  # windows moved down
            below = bottom - top - above - (last + 1 - first)  # windows moved up
            sums = sums[:, :, first : last + self.window // self.factors[0]]
        spacing = 1
        for factor in reversed(self.factors[1:]):
            sums = self._sums(sums, factor, spacing)
            spacing *= factor
        means = sums / self.window ** (self.tall + self.wide)
        sides = (before, after) if self.wide else (0, 0)
        return F.pad(means, (*sides, above, below), mode="replicate")

    def _sums(self, x: Tensor, count: int, spacing: int) -> Tensor:
        """Sums over `count` pixels, `spacing` apart, in each direction in which the window moves."""
        taps = x.new_ones(x.shape[1], 1, count if self.tall else 1, count if self.wide else 1)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, taps, dilation=spacing, groups=x.shape[1])


def window_factors(window: int) -> list[int]:
    """Small numbers whose product is `window`, 96 = 6 * 4 * 4; prime factors above 6 stay as they are."""
    factors = []
    while window > 1:
        divisors = (n for n in (6, 5, 4, 3, 2, *range(7, window + 1)) if window % n == 0)
        factors.append(next(divisors))
        window //= factors[-1]
    return factors or [1]


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
        height = x.shape[2]
        if self.training or takes_all_rows(x):
            y = self.mix(x)
            y = self.attend(y, self.means(y).rows(0, height))
            return self.finish(x, y)
        y = torch.empty_like(x)
        parts = stripes(x, 2 * x.shape[1])
        for top, bottom in parts:
            first, last = max(top - 1, 0), min(bottom + 1, height)  # what the 3x3 kernel reads
            y[:, :, top:bottom] = self.mix(x[:, :, first:last])[:, :, top - first : bottom - first]
        means = self.means(y)  # from here on y becomes the output
        for top, bottom in parts:
            weighed = self.attend(y[:, :, top:bottom], means.rows(top, bottom))
            y[:, :, top:bottom] = self.finish(x[:, :, top:bottom], weighed)
        return y

    def means(self, y: Tensor) -> LocalMeans:
        """The statistics for attention: of the whole map in training, local ones at test time."""
        return LocalMeans(y, max(y.shape[-2:]) if self.training else self.window)

    def mix(self, x: Tensor) -> Tensor:
        """The block's first half up to its attention, (B,C,H,W) -> (B,C,H,W)."""
        return simple_gate(self.depthwise(self.expand(self.norm1(x))))

    def attend(self, y: Tensor, means: Tensor) -> Tensor:
        """Simplified channel attention, (B,C,H,W) -> (B,C,H,W), by the `means` of y."""
        return y * self.attention(means.to(y.dtype))

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows attention: the block's input x and the weighed y, (B,C,H,W) each -> (B,C,H,W)."""
        x = torch.addcmul(x, self.beta, self.project(y))
        return torch.addcmul(x, self.gamma, self.feed_out(simple_gate(self.feed(self.norm2(x)))))


def join(up: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    """up(x) + skip: x (B,2C,H,W), skip (B,C,2H,2W) -> (B,C,2H,2W), which may take the place of `skip`."""
    if takes_all_rows(x):
        return up(x) + skip
    for top, bottom in stripes(x, 2 * x.shape[1]):
        skip[:, :, 2 * top : 2 * bottom] += up(x[:, :, top:bottom])
    return skip


def reach_px(shape: NAFNetShape) -> int:
    """Reach of the convolutions and of two and a half pooling windows, one behind the other.

    A window reaches half its side, a 3x3 convolution one pixel of its scale, a change of scale at most one of
    the finer. Statistics pooled a third time reach further still, by less than the eye sees: the shipped
    experts come to 0.15/255 at most, and with two windows came to 1.3/255.
    """
    reach = 5 * shape.window_px // 4
    reach += 2 * shape.unshuffle + shape.unshuffle - 1  # intro and ending; the unshuffled stem
    for level, (count, back) in enumerate(zip(shape.encoder, shape.decoder[::-1], strict=True)):
        reach += shape.unshuffle * 2**level * (count + back + 1)
    return reach + shape.unshuffle * 2 ** len(shape.encoder) * shape.middle


class NAFNet(Network):
    """An expert whose last convolution starts at zero: untrained, it is the identity."""

    def __init__(self, shape: NAFNetShape) -> None:
        width, depth = shape.width, len(shape.encoder)
        super().__init__(multiple=shape.unshuffle * 2**depth, halo_px=reach_px(shape))
        self.unshuffle = shape.unshuffle
        window_px = -(-shape.window_px // self.multiple) * self.multiple
        widths = [width * 2**level for level in range(depth)]  # channels of all resolutions but the coarsest

        def blocks(count: int, level: int) -> nn.Sequential:
            window = window_px // (shape.unshuffle * 2**level)
            return nn.Sequential(*(NAFBlock(width * 2**level, window) for _ in range(count)))

        stem = 3 * shape.unshuffle**2
        self.intro = nn.Conv2d(stem, width, 3, padding=1)
        self.encoder = nn.ModuleList(blocks(count, level) for level, count in enumerate(shape.encoder))
        self.down = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in widths)
        self.middle = blocks(shape.middle, depth)
        self.up = nn.ModuleList(
            nn.Sequential(conv(2 * c, 4 * c, 1), nn.PixelShuffle(2)) for c in widths[::-1]
        )
        self.decoder = nn.ModuleList(blocks(count, depth - 1 - i) for i, count in enumerate(shape.decoder))
        self.ending = nn.Conv2d(width, stem, 3, padding=1)
        for parameter in self.ending.parameters():
            nn.init.zeros_(parameter)

    def body(self, x: Tensor) -> Tensor:
        photo = x
        x = F.pixel_unshuffle(x, self.unshuffle).contiguous(memory_format=torch.channels_last)
        x = self.intro(x)
        skips = []
        for encoder, down in zip(self.encoder, self.down, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, decoder in zip(self.up, self.decoder, strict=True):
            x = join(up, x, skips.pop())  # what was x is free before the blocks run
            x = decoder(x)
        return photo.float() + F.pixel_shuffle(self.ending(x), self.unshuffle)
