"""The expert architectures, each a `Network`, and how to build one from its shape."""

from typing import Any

from unirestorer.config import NetworkShape
from unirestorer.networks.base import Network
from unirestorer.networks.nafnet import NAFNet
from unirestorer.networks.restormer import Restormer
from unirestorer.networks.retinexformer import RetinexFormer

NETWORKS: dict[str, Any] = {"nafnet": NAFNet, "restormer": Restormer, "retinexformer": RetinexFormer}


def build_network(shape: NetworkShape) -> Network:
    """The network of a shape that was checked, with fresh weights, in training mode."""
    return NETWORKS[shape.kind](shape)
