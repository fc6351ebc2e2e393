"""The expert architectures. Each maps x (B,3,H,W) in [0,1] to (B,3,H,W), not clamped, for any H, W >= 1.

Each knows its `multiple`, to which it pads the sides (tiles must start on it), and its `halo_px`, the margin
in pixels that a tile needs around itself.
"""

from collections.abc import Callable
from typing import Any

from unirestorer.config import NetworkShape
from unirestorer.networks.nafnet import NAFNet
from unirestorer.networks.restormer import Restormer
from unirestorer.networks.retinexformer import RetinexFormer

Network = NAFNet | Restormer | RetinexFormer
NETWORKS: dict[str, Callable[[Any], Network]] = {
    "nafnet": NAFNet,
    "restormer": Restormer,
    "retinexformer": RetinexFormer,
}


def build_network(shape: NetworkShape) -> Network:
    """The network of a shape that was checked, with fresh weights, in training mode."""
    return NETWORKS[shape.kind](shape)
