"""The expert architectures, each a `Network`, and how to build one from its config."""

from collections.abc import Callable

import torch

from unirestorer.config import NetworkConfig
from unirestorer.networks.base import Network
from unirestorer.networks.nafnet import NAFNet
from unirestorer.networks.restormer import Restormer
from unirestorer.networks.retinexformer import RetinexFormer

NETWORKS: dict[str, Callable[[NetworkConfig], Network]] = {
    "nafnet": NAFNet,
    "restormer": Restormer,
    "retinexformer": RetinexFormer,
}

# The largest values that a config may ask for: configs come with downloaded checkpoints.
MAX_PARAMETERS = 500_000_000
MAX_LEVELS, MAX_BLOCKS, MAX_WIDTH, MAX_UNSHUFFLE, MAX_STAGES = 6, 256, 1024, 8, 8


def build_network(config: NetworkConfig) -> Network:
    """The network that `config` describes, with fresh weights, in training mode.

    Raises ValueError, before anything is allocated, for an unknown kind and for a shape that cannot work or
    is absurd.
    """
    if config.kind not in NETWORKS:
        raise ValueError(f"unknown network kind {config.kind!r}: choose one of {', '.join(NETWORKS)}")
    _check_shape(config)
    with torch.device("meta"):  # shapes without memory
        parameters = sum(p.numel() for p in NETWORKS[config.kind](config).parameters())
    if parameters > MAX_PARAMETERS:
        raise ValueError(
            f"network: the {config.kind} would have {parameters / 1e6:.0f} million parameters; "
            f"at most {MAX_PARAMETERS / 1e6:.0f} million are allowed, so reduce its width or blocks"
        )
    return NETWORKS[config.kind](config)


def _check_shape(config: NetworkConfig) -> None:
    """Raises ValueError for sizes out of range and for lists that do not fit together."""
    levels = len(config.encoder)
    blocks = [*config.encoder, config.middle, *config.decoder]
    for name, value, low, high in (
        ("length of encoder", levels, 1, MAX_LEVELS),
        ("length of decoder", len(config.decoder), levels, levels),
        ("width", config.width, 1, MAX_WIDTH),
        ("fewest blocks per resolution", min(blocks), 1, MAX_BLOCKS),
        ("refinement", config.refinement, 0, MAX_BLOCKS),
        ("stages", config.stages, 1, MAX_STAGES),
        ("number of blocks", sum(blocks) + config.refinement, 1, MAX_BLOCKS),
        ("window_px", config.window_px, 1, 2**16),
        ("unshuffle", config.unshuffle, 1, MAX_UNSHUFFLE),
    ):
        if not low <= value <= high:
            expected = f"{low}" if low == high else f"{low} to {high}"
            raise ValueError(f"network: {name} is {value}, expected {expected}")
    if config.kind == "nafnet":
        return
    if len(config.heads) != levels + 1:
        raise ValueError(
            f"network: heads has {len(config.heads)} entries, expected {levels + 1}, "
            "one per resolution of the encoder and one for the middle"
        )
    for level, heads in enumerate(config.heads):
        channels = config.width * 2**level
        if heads < 1 or channels % heads:
            raise ValueError(f"network: heads[{level}] is {heads}, which does not divide {channels} channels")
    divisor = 4 if config.kind == "retinexformer" else 2
    if config.width % divisor:
        raise ValueError(f"network: width is {config.width}, a {config.kind} needs a multiple of {divisor}")
