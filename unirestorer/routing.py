"""Heads and routers: from a DR to its estimate, the estimate's uncertainty, and a path in the tree (section
3.3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unirestorer.config import RouterShape
from unirestorer.types import Estimate, Route

LOG_VARIANCE_LIMITS = (-6.0, 6.0)


def mlp(width_in: int, hidden: int, width_out: int, layers: int) -> nn.Sequential:
    """`layers` linear layers, LayerNorm and GELU between them (section D).

    Dropout, before each but the last, leaves nothing out until training says so. No BatchNorm: a photo's
    route must not depend on its batch.
    """
    widths = [width_in, *[hidden] * (layers - 1)]
    parts: list[nn.Module] = []
    for width in widths[:-1]:
        parts += [nn.Dropout(0.0), nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU()]
    return nn.Sequential(*parts, nn.Linear(widths[-1], width_out))


class NoisyGate(nn.Module):
    """One-layer noisy router (Eq. 2): h w_g + N(0, 1) softplus(h w_n), the softmax comes afterwards."""

    def __init__(self, width_in: int, choices: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width_in, choices)
        self.noise = nn.Linear(width_in, choices)
        nn.init.zeros_(self.noise.weight)
        nn.init.constant_(self.noise.bias, -2.0)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, width_in) -> logits (B, choices); noisy while training."""
        logits = self.gate(h)
        if self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(self.noise(h))
        return logits


class Router(nn.Module):
    """H_d, H_g, G_d and G_g.

    `expert_table` (leaves, levels) comes from the tree; mean and std (D,) from the training DRs.
    """

    mean: Tensor
    std: Tensor
    expert_table: Tensor

    def __init__(self, dim: int, expert_table: Tensor, shape: RouterShape) -> None:
        super().__init__()
        self.shape, (leaves, levels) = shape, expert_table.shape
        self.head_deg = mlp(dim, shape.hidden, dim, shape.layers)  # H_d
        self.head_gran = mlp(dim, shape.hidden, dim, shape.layers)  # H_g
        self.gate_leaf = NoisyGate(dim, leaves)  # G_d
        self.gate_level = NoisyGate(dim, levels)  # G_g
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("expert_table", expert_table, persistent=False)

    def standardised(self, e: Tensor) -> Tensor:
        """DRs or centres (..., D) as the heads see them: zero mean, unit variance over the training DRs."""
        return (e - self.mean) / self.std

    def estimate(self, e: Tensor) -> Estimate:
        """DRs e (B, D) -> the estimate of their leaf's centre and its log-variance (Eq. 7)."""
        h = self.standardised(e)
        log_e_gran = self.head_gran(h).clamp(*LOG_VARIANCE_LIMITS)
        return Estimate(e, self.head_deg(h), log_e_gran)

    def route(self, estimate: Estimate, leaf_mask: Tensor | None = None) -> Route:
        """Choose leaf, level and expert (Eq. 6). `leaf_mask` (leaves,) or (B, leaves) prunes leaves before
        the softmax.

        Raises ValueError when the mask leaves nothing.
        """
        leaf_logits = self.gate_leaf(estimate.e_deg)  # (B, leaves)
        if leaf_mask is not None:
            leaf_mask = leaf_mask.to(leaf_logits.device).expand_as(leaf_logits)
            if not leaf_mask.any(1).all():
                raise ValueError("the instruction prunes every leaf of the tree: keep at least one task")
            leaf_logits = leaf_logits.masked_fill(~leaf_mask, -torch.inf)
        leaf_probs = leaf_logits.softmax(-1)  # (B, leaves)
        level_probs = self.gate_level(estimate.log_e_gran).softmax(-1)  # (B, levels)
        leaf, level = leaf_probs.argmax(-1), level_probs.argmax(-1)  # (B,)
        return Route(leaf_probs, level_probs, leaf, level, self.expert_table[leaf, level])
