"""Restormer: a transformer that attends across channels (Zamir et al., "Restormer: Efficient Transformer for
High-Resolution Image Restoration", CVPR 2022).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unirestorer.config import RestormerShape
from unirestorer.networks.base import LayerNorm2d, Network, conv

EXPANSION = 2.66  # gamma, by how much the feed-forward network widens (section 4)


class TransposedAttention(nn.Module):
    """Multi-Dconv head transposed attention, MDTA (section 3.1, Eq. 1), (B,C,H,W) -> (B,C,H,W).

    Attention weighs channels against channels, (C/heads) x (C/heads) per head, over the whole map.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))  # alpha
        triple = 3 * channels
        self.qkv = nn.Sequential(conv(channels, triple, 1), conv(triple, triple, 3, groups=triple))
        self.project = conv(channels, channels, 1)

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
        self.expand = conv(channels, 2 * hidden, 1)
        self.depthwise = conv(2 * hidden, 2 * hidden, 3, groups=2 * hidden)
        self.project = conv(hidden, channels, 1)

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
        width, depth = shape.width, len(shape.encoder)
        super().__init__(multiple=2**depth, halo_px=64)
        widths = [width * 2**level for level in range(depth)]  # channels of all resolutions but the coarsest

        def blocks(count: int, channels: int, level: int) -> nn.Sequential:
            return nn.Sequential(*(TransformerBlock(channels, shape.heads[level]) for _ in range(count)))

        # On the way up a 1x1 convolution halves the channels of [x, skip], except at full resolution, where
        # the decoder and the refinement keep both: 2 * width channels.
        self.embed = conv(3, width, 3)
        self.encoder = nn.ModuleList(blocks(shape.encoder[i], c, i) for i, c in enumerate(widths))
        self.down = nn.ModuleList(nn.Sequential(conv(c, c // 2, 3), nn.PixelUnshuffle(2)) for c in widths)
        self.middle = blocks(shape.middle, width * 2**depth, depth)
        self.up, self.reduce, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, count in zip(range(depth - 1, -1, -1), shape.decoder, strict=True):
            below = 2 * widths[level]  # channels that arrive from the coarser level
            kept = below // 2 if level > 0 else below
            self.up.append(nn.Sequential(conv(below, 2 * below, 3), nn.PixelShuffle(2)))
            self.reduce.append(conv(below, kept, 1) if level > 0 else nn.Identity())
            self.decoder.append(blocks(count, kept, level))
        self.refinement = blocks(shape.refinement, 2 * width, 0)
        self.ending = conv(2 * width, 3, 3)

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
