"""Restormer: a transformer that attends across channels (Zamir et al., "Restormer: Efficient Transformer for
High-Resolution Image Restoration", CVPR 2022).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unirestorer.config import RestormerShape
from unirestorer.networks.base import LayerNorm2d, Network

EXPANSION = 2.66  # gamma, by how much the feed-forward network widens (section 4)


class TransposedAttention(nn.Module):
    """Multi-Dconv head transposed attention, MDTA (section 3.1, Eq. 1), (B,C,H,W) -> (B,C,H,W).

    Attention weighs channels against channels, (C/heads) x (C/heads) per head, over the whole map.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))  # alpha
        self.qkv = nn.Sequential(
            nn.Conv2d(channels, 3 * channels, 1, bias=False),
            nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False),
        )
        self.project = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, 3, self.heads, channels // self.heads, height * width).unbind(1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)  # (B, heads, C/heads, H*W)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return self.project((weights.to(v.dtype) @ v).reshape(batch, channels, height, width))


class GatedFeedForward(nn.Module):
    """Gated-Dconv feed-forward network, GDFN (section 3.2, Eq. 2), (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(channels * EXPANSION)
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.depthwise(self.expand(x)).chunk(2, dim=1)
        return self.project(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    """x + MDTA(norm(x)), then x + GDFN(norm(x)), (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels, eps=1e-5)
        self.attention = TransposedAttention(channels, heads)
        self.norm2 = LayerNorm2d(channels, eps=1e-5)
        self.feed_forward = GatedFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Restormer(Network):
    """A U-shape of transformer blocks (Fig. 2).

    The attention is over the whole map, so a tiled run differs from a whole one and no halo is exact:
    `halo_px` is a fixed choice.
    """

    def __init__(self, shape: RestormerShape) -> None:
        width, heads, depth = shape.width, shape.heads, len(shape.encoder)
        super().__init__(multiple=2**depth, halo_px=64)

        def blocks(count: int, channels: int, level: int) -> nn.Sequential:
            return nn.Sequential(*(TransformerBlock(channels, heads[level]) for _ in range(count)))

        # On the way up a 1x1 convolution halves the channels of [x, skip], except at full resolution, where
        # the decoder and the refinement keep both: 2 * width channels.
        self.embed = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(blocks(count, width * 2**i, i) for i, count in enumerate(shape.encoder))
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width * 2**i, width * 2**i // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)
            )
            for i in range(depth)
        )
        self.middle = blocks(shape.middle, width * 2**depth, depth)
        self.up, self.reduce, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, count in zip(range(depth - 1, -1, -1), shape.decoder, strict=True):
            below = width * 2 ** (level + 1)  # channels that arrive from the coarser level
            kept = below // 2 if level > 0 else below
            self.up.append(
                nn.Sequential(nn.Conv2d(below, 2 * below, 3, padding=1, bias=False), nn.PixelShuffle(2))
            )
            self.reduce.append(nn.Conv2d(below, kept, 1, bias=False) if level > 0 else nn.Identity())
            self.decoder.append(blocks(count, kept, level))
        self.refinement = blocks(shape.refinement, 2 * width, 0)
        self.ending = nn.Conv2d(2 * width, 3, 3, padding=1, bias=False)

    def body(self, x: Tensor) -> Tensor:
        photo = x
        x = self.embed(x)
        skips = []
        for encoder, down in zip(self.encoder, self.down, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, reduce, decoder in zip(self.up, self.reduce, self.decoder, strict=True):
            x = decoder(reduce(torch.cat([up(x), skips.pop()], dim=1)))
        return photo.float() + self.ending(self.refinement(x))
