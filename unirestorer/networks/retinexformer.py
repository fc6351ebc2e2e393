"""RetinexFormer: a transformer guided by an estimate of the illumination.

Cai et al., "Retinexformer: One-stage Retinex-based Transformer for Low-light Image Enhancement", ICCV 2023.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unirestorer.config import RetinexFormerShape
from unirestorer.networks.base import LayerNorm2d, Network, conv


class IlluminationEstimator(nn.Module):
    """Estimator E (section 3.1): image (B,3,H,W) -> light-up map (B,3,H,W), illumination feature (B,C,H,W).

    Besides the image it sees the illumination prior, the mean of the three colours.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(4, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=4)
        self.to_map = nn.Conv2d(channels, 3, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        prior = image.mean(1, keepdim=True)  # L_p
        feature = self.depthwise(self.fuse(torch.cat([image, prior], dim=1)))
        return self.to_map(feature), feature


class IlluminationAttention(nn.Module):
    """Illumination-guided self-attention, IG-MSA (section 3.2): x and light (B,C,H,W) -> (B,C,H,W).

    Channels attend to channels over the whole map; the values are multiplied by the illumination feature.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = conv(channels, 3 * channels, 1)
        self.rescale = nn.Parameter(torch.ones(heads, 1, 1))  # alpha
        self.project = nn.Conv2d(channels, channels, 1)
        first, second = (conv(channels, channels, 3, groups=channels) for _ in range(2))
        self.position = nn.Sequential(first, nn.GELU(), second)

    def forward(self, x: Tensor, light: Tensor) -> Tensor:
        per_head = (x.shape[0], self.heads, x.shape[1] // self.heads, x.shape[2] * x.shape[3])
        query, key, value = self.qkv(x).chunk(3, dim=1)
        q = F.normalize(query.reshape(per_head), dim=-1)  # (B, heads, C/heads, H*W)
        k = F.normalize(key.reshape(per_head), dim=-1)
        v = (value * light).reshape(per_head)
        weights = (k @ q.transpose(-2, -1) * self.rescale).softmax(-1)
        return self.project((weights.to(v.dtype) @ v).reshape(x.shape)) + self.position(value)


class IlluminationBlock(nn.Module):
    """Illumination-guided attention block, IGAB (Fig. 2): x and light (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = IlluminationAttention(channels, heads)
        self.norm = LayerNorm2d(channels, eps=1e-5)
        wide = 4 * channels
        expand, depthwise = conv(channels, wide, 1), conv(wide, wide, 3, groups=wide)
        self.feed_forward = nn.Sequential(expand, nn.GELU(), depthwise, nn.GELU(), conv(wide, channels, 1))

    def forward(self, x: Tensor, light: Tensor) -> Tensor:
        x = x + self.attention(x, light)
        return x + self.feed_forward(self.norm(x))


class IlluminationBlocks(nn.ModuleList):
    """`count` blocks, one after the other, under the same light: x and light (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, channels: int, heads: int, count: int) -> None:
        super().__init__(IlluminationBlock(channels, heads) for _ in range(count))

    def forward(self, x: Tensor, light: Tensor) -> Tensor:
        for block in self:
            x = block(x, light)
        return x


class Stage(nn.Module):
    """One estimator and one restorer R (section 3): image (B,3,H,W) -> enhanced (B,3,H,W).

    The image is first lit up, image * map + image; a U-shape of attention blocks then repairs what that
    corrupted. Its last convolution starts at zero, so an untrained stage only lights up.
    """

    def __init__(self, shape: RetinexFormerShape) -> None:
        super().__init__()
        width, depth = shape.width, len(shape.encoder)
        widths = [width * 2**level for level in range(depth)]  # channels of all resolutions but the coarsest

        def blocks(count: int, level: int) -> IlluminationBlocks:
            return IlluminationBlocks(width * 2**level, shape.heads[level], count)

        def downs() -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(c, 2 * c, 4, stride=2, padding=1, bias=False) for c in widths)

        self.estimator = IlluminationEstimator(width)
        self.embed = conv(3, width, 3)
        self.encoder = nn.ModuleList(blocks(count, level) for level, count in enumerate(shape.encoder))
        self.down, self.down_light = downs(), downs()
        self.middle = blocks(shape.middle, depth)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in widths[::-1])
        self.fuse = nn.ModuleList(conv(2 * c, c, 1) for c in widths[::-1])
        self.decoder = nn.ModuleList(blocks(count, depth - 1 - i) for i, count in enumerate(shape.decoder))
        self.ending = conv(width, 3, 3)
        nn.init.zeros_(self.ending.weight)

    def forward(self, image: Tensor) -> Tensor:
        light_map, light = self.estimator(image)
        lit = image.float() * light_map.float() + image.float()  # I_lu
        x = self.embed(lit.to(image.dtype))
        skips = []
        for encoder, down, down_light in zip(self.encoder, self.down, self.down_light, strict=True):
            x = encoder(x, light)
            skips.append((x, light))
            x, light = down(x), down_light(light)
        x = self.middle(x, light)
        for up, fuse, decoder in zip(self.up, self.fuse, self.decoder, strict=True):
            skip, light = skips.pop()
            x = decoder(fuse(torch.cat([up(x), skip], dim=1)), light)
        return lit + self.ending(x).float()


class RetinexFormer(Network):
    """One or several stages, each of which enhances what the one before gives (Fig. 2).

    The attention is over the whole map, so a tiled run differs from a whole one and no halo is exact:
    `halo_px` is a fixed choice.
    """

    def __init__(self, shape: RetinexFormerShape) -> None:
        super().__init__(multiple=2 ** len(shape.encoder), halo_px=64)
        self.stages = nn.ModuleList([Stage(shape)])  # one, as in the paper; a list names the weights

    def body(self, x: Tensor) -> Tensor:
        return self.stages[0](x)
