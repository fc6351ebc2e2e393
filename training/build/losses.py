"""The routers' losses (Eq. 7 to 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from unirestorer.types import Estimate, Route

L1_FLOOR = 0.02  # five grey levels


def expected_l1(route: Route, l1: Tensor, expert_table: Tensor) -> Tensor:
    """First term of Eq. 9: the mean l1 that the soft route would give, each row relative to its best expert.

    Where the best expert is nearly perfect, as on clean photos, the row is divided by `L1_FLOOR` instead: a
    ratio of hundreds would drown all other rows.

    `l1` (B, experts) holds each sample's error under each expert, `expert_table` (leaves, levels) who serves
    which path.
    """
    paths = _relative(l1)[:, expert_table]  # (B, leaves, levels)
    weight = route.leaf_probs[:, :, None] * route.level_probs[:, None, :]  # (B, leaves, levels)
    return (weight * paths).sum((1, 2)).mean()


def straight_through_l1(route: Route, l1: Tensor, expert_table: Tensor) -> Tensor:
    """What `expected_l1` is compared with: the chosen expert's relative l1 alone, times a gate g / g.detach()
    that is 1 and passes a gradient to the probability of the choice.
    """
    leaf = route.leaf_probs.gather(1, route.leaf[:, None])
    level = route.level_probs.gather(1, route.level[:, None])
    gate = leaf * level  # (B, 1)
    chosen = expert_table[route.leaf, route.level]
    return (gate / gate.detach() * _relative(l1).gather(1, chosen[:, None])).mean()


def _relative(l1: Tensor) -> Tensor:
    """l1 (B, experts) over each row's best."""
    return l1 / l1.min(1, keepdim=True).values.clamp(min=L1_FLOOR)


def uncertainty_loss(estimate: Estimate, center: Tensor) -> Tensor:
    """Eq. 7 on the log-variance: (u - e_deg)^2 / (2 e_gran) + ln(e_gran) / 2, mean over batch and dimensions.

    `center` (B, D) is u, standardised like the estimate.
    """
    squared = (center - estimate.e_deg).square()
    return 0.5 * (squared * torch.exp(-estimate.log_e_gran) + estimate.log_e_gran).mean()


def load_loss(route: Route) -> Tensor:
    """Eq. 8: standard deviation over mean of the levels' soft loads along the path."""
    load = route.level_probs.mean(0)  # (levels,)
    return load.std(unbiased=False) / load.mean()
