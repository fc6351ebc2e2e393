"""The degradation representation (DR) of a photo, e = D(x) (Eq. 3), by an open_clip image tower on native
pixels.

The tower is trained by contrast against captions of degradation type and degree; the captions' features are
kept, so a photo's nearest captions say in words what the DR means. Nothing is ever resized: that would
destroy noise.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unirestorer.config import ExtractorShape
from unirestorer.imaging import views

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
VIEWS_PER_PASS = {"cpu": 16, "cuda": 512}
MAX_TOWER_PARAMETERS = 500_000_000


class ClipColours(nn.Module):
    """Knows mean and deviation of the three colours in CLIP's training, (3, 1, 1) each."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)


class FineScale(ClipColours):
    """The crop, its high-pass copy and that copy's magnitude, at half the resolution without losing a pixel.

    (B, 3, H, W) in [0, 1] -> (B, 36, H/2, W/2). Gives a small tower the finest scale, where noise, blur and
    the 8x8 grid live.
    """

    channels = 36
    gain = 8.0

    def forward(self, x: Tensor) -> Tensor:
        # Half precision would drown the finest detail in rounding.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            rows = F.pad(x, (0, 0, 1, 1), mode="reflect")
            rows = 0.25 * rows[..., :-2, :] + 0.5 * x + 0.25 * rows[..., 2:, :]
            columns = F.pad(rows, (1, 1, 0, 0), mode="reflect")
            smooth = 0.25 * columns[..., :-2] + 0.5 * rows + 0.25 * columns[..., 2:]
            detail = self.gain * (x - smooth)
            stacked = torch.cat(((x - self.mean) / self.std, detail, detail.abs()), 1)
            return F.pixel_unshuffle(stacked, 2).contiguous(memory_format=torch.channels_last)


class ResNetTower(nn.Module):
    """open_clip's modified ResNet behind `FineScale`: views (N, 3, 224, 224) in [0, 1] -> (N, D)."""

    def __init__(self, shape: ExtractorShape) -> None:
        super().__init__()
        from open_clip.modified_resnet import ModifiedResNet  # heavy import, needed here only

        self.fine = FineScale()
        layers, half_px, stem = list(shape.layers), shape.view_px // 2, shape.width // 2
        self.tower = ModifiedResNet(layers, shape.dim, heads=stem, image_size=half_px, width=shape.width)
        self.tower.conv1 = nn.Sequential(  # pyright: ignore[reportAttributeAccessIssue]
            nn.Conv2d(FineScale.channels, shape.width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(shape.width, stem, 3, stride=2, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(self.fine(x))


class ClipTower(ClipColours):
    """The image tower of a published open_clip model, `shape.tower`: views (N, 3, 224, 224) in [0, 1] -> (N,
    D).
    """

    def __init__(self, shape: ExtractorShape, tower: nn.Module | None = None) -> None:
        super().__init__()
        if tower is None:
            import open_clip  # heavy import, needed here only

            if shape.tower not in open_clip.list_models():
                raise ValueError(f"unknown tower {shape.tower!r}: expected resnet or an open_clip name")
            vision = (open_clip.get_model_config(shape.tower) or {}).get("vision_cfg", {})
            layers, width = vision.get("layers"), vision.get("width", 768)
            if not isinstance(layers, int) or 12 * layers * width**2 > MAX_TOWER_PARAMETERS:
                raise ValueError(f"the tower {shape.tower!r} is none that is used here: name a ViT up to L")
            where = torch.get_default_device()  # "meta" where a checkpoint's size is looked at first
            tower = cast(nn.Module, open_clip.create_model(shape.tower, device=where).visual)
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        return self.tower((x - self.mean) / self.std)


class Extractor(nn.Module):
    """D with its captions.

    `captions` are the C texts of the training, `caption_features` (C, D) their unit features.
    """

    caption_features: Tensor
    logit_scale: Tensor

    def __init__(
        self, shape: ExtractorShape, captions: tuple[str, ...], tower: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.shape, self.captions = shape, captions
        self.tower = tower or (ResNetTower(shape) if shape.tower == "resnet" else ClipTower(shape))
        self.register_buffer("caption_features", torch.zeros(len(captions), shape.dim))
        self.register_buffer("logit_scale", torch.tensor(1.0))

    def embed(self, crops: Tensor) -> Tensor:
        """Views (N, 3, view_px, view_px) -> unit features (N, D)."""
        return F.normalize(self.tower(crops).float(), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Photos (B, 3, H, W) in [0, 1] of any size -> DRs e (B, D) of unit length, the mean over each
        photo's views.

        The photos may lie elsewhere than the weights: only the views are moved.
        """
        crops = views(x, self.shape.view_px)  # (B, V, 3, 224, 224)
        parts = crops.flatten(0, 1).split(VIEWS_PER_PASS[self.caption_features.device.type])
        features = [self.embed(part.to(self.caption_features.device)) for part in parts]
        return F.normalize(torch.cat(features).unflatten(0, crops.shape[:2]).mean(1), dim=-1)

    def caption_probs(self, e: Tensor) -> Tensor:
        """How well each caption fits the DRs e (B, D): probabilities (B, C)."""
        return (self.logit_scale * e @ self.caption_features.T).softmax(-1)
