"""What a model is: shapes as frozen dataclasses, read from JSON with every key required.

How a model is trained is the business of `training/config.py`. Configs come with strangers' checkpoints, so
`from_dict` is the one place that validates, before anything is built.
"""

import math
import typing
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

MAX_LEVELS, MAX_BLOCKS, MAX_WIDTH, MAX_UNSHUFFLE = 6, 256, 1024, 8


class Section:
    """A part of a config: a frozen dataclass that knows its limits."""

    def check(self) -> None:
        """Raises ValueError for values that are out of range or do not fit together."""


@dataclass(frozen=True)
class UShape(Section):
    """What every expert network has: blocks on the way down, at the bottom and on the way up."""

    width: int  # channels at full resolution
    encoder: tuple[int, ...]  # blocks per resolution, finest first
    middle: int  # blocks at the coarsest resolution
    decoder: tuple[int, ...]  # blocks per resolution, coarsest first

    def check(self) -> None:
        levels, blocks = len(self.encoder), (*self.encoder, self.middle, *self.decoder)
        _within("width", self.width, 1, MAX_WIDTH)
        _within("length of encoder", levels, 1, MAX_LEVELS)
        _within("length of decoder", len(self.decoder), levels, levels)
        _within("fewest blocks per resolution", min(blocks), 1, MAX_BLOCKS)
        _within("number of blocks", sum(blocks), 1, MAX_BLOCKS)


@dataclass(frozen=True)
class NAFNetShape(UShape):
    """Shape of a NAFNet."""

    window_px: int  # side of the window that pooled statistics cover at test time
    unshuffle: int  # pixel-unshuffle factor of the stem, 1 = full resolution
    kind: Literal["nafnet"] = "nafnet"

    def check(self) -> None:
        super().check()
        _within("window_px", self.window_px, 1, 2**16)
        _within("unshuffle", self.unshuffle, 1, MAX_UNSHUFFLE)


@dataclass(frozen=True)
class AttentionShape(UShape):
    """What networks with attention have in common."""

    heads: tuple[int, ...]  # per resolution of the encoder, finest first, and of the middle
    width_step = 1  # what the network's width is a multiple of

    def check(self) -> None:
        super().check()
        if self.width % self.width_step:
            raise ValueError(f"width is {self.width}, expected a multiple of {self.width_step}")
        _within("length of heads", len(self.heads), len(self.encoder) + 1, len(self.encoder) + 1)
        for level, heads in enumerate(self.heads):
            channels = self.width * 2**level
            if heads < 1 or channels % heads:
                raise ValueError(f"heads[{level}] is {heads}, which does not divide {channels} channels")


@dataclass(frozen=True)
class RestormerShape(AttentionShape):
    """Shape of a Restormer."""

    refinement: int  # blocks after the decoder
    kind: Literal["restormer"] = "restormer"
    width_step = 2

    def check(self) -> None:
        super().check()
        _within("refinement", self.refinement, 0, MAX_BLOCKS)


@dataclass(frozen=True)
class RetinexFormerShape(AttentionShape):
    """Shape of a RetinexFormer."""

    kind: Literal["retinexformer"] = "retinexformer"
    width_step = 4


NetworkShape = NAFNetShape | RestormerShape | RetinexFormerShape
NETWORK_SHAPES: dict[str, type[NetworkShape]] = {shape.kind: shape for shape in typing.get_args(NetworkShape)}


@dataclass(frozen=True)
class ExtractorShape(Section):
    """Shape of the DR extractor D."""

    tower: str  # "resnet" (small, of our own) or the name of an open_clip model
    layers: tuple[int, ...]  # resnet: bottlenecks per stage
    width: int  # resnet: channels of the first stage
    dim: int  # D, length of the DR
    view_px: int  # side of one view, native pixels

    def check(self) -> None:
        _within("dim", self.dim, 8, 4096)
        _within("width", self.width, 8, 4096)
        _within("view_px", self.view_px, 8, 1024)
        if len(self.layers) != 4 or not all(1 <= count <= 64 for count in self.layers):
            raise ValueError(f"layers: expected four counts from 1 to 64, got {self.layers}")


@dataclass(frozen=True)
class RouterShape(Section):
    """Shape of the two heads."""

    hidden: int  # features between layers
    layers: int

    def check(self) -> None:
        _within("hidden", self.hidden, 1, 8192)
        _within("layers", self.layers, 1, 64)


@dataclass(frozen=True)
class TreeShape(Section):
    """Words and counts of the degradation tree."""

    names: tuple[tuple[str, ...], ...]  # of the nodes of each level, coarsest first
    task_sets: tuple[dict[str, int], ...]  # per leaf, how many samples hold which tasks, "denoise+derain"


@dataclass(frozen=True)
class Range(Section):
    """Strengths of one degradation: those that a model was trained on, and those held out beyond them."""

    trained: tuple[float, float]  # lowest, highest
    beyond: tuple[float, float]

    def check(self) -> None:
        for low, high in (self.trained, self.beyond):
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"expected a low and a high strength, got {low} and {high}")


S = TypeVar("S", bound=Section)


def from_dict(kind: type[S], data: Any, where: str) -> S:  # noqa: ANN401 - anything a JSON file may hold
    """The section `kind` in JSON data; `where` it stands is said in errors.

    Raises ValueError when a key is missing or unknown, and for values of a wrong type or out of range.
    """
    hints = typing.get_type_hints(kind)
    refuse_unknown(data, hints, where)
    for key in hints:
        if key not in data:
            raise ValueError(f"{where}: the key {key!r} is missing")
    section = kind(**{key: convert(hint, data[key], f"{where}.{key}") for key, hint in hints.items()})
    try:
        section.check()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return section


def refuse_unknown(data: Any, keys: Collection[str], where: str) -> None:  # noqa: ANN401
    """Raises ValueError for data that is no JSON object, or has other keys than these."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object, got {type(data).__name__}")
    for key in data:
        if key not in keys:
            raise ValueError(f"{where}: unknown key {key!r:.60}; known keys are {', '.join(keys)}")


def network_from_dict(data: Any, where: str) -> NetworkShape:  # noqa: ANN401
    """The shape of an expert network, of which kind its key "kind" says. Raises ValueError as `from_dict`."""
    kind = data.get("kind") if isinstance(data, dict) else data
    if kind not in list(NETWORK_SHAPES):  # it may be unhashable
        kinds = ", ".join(NETWORK_SHAPES)
        raise ValueError(f"{where}: unknown network kind {kind!r:.60}: choose one of {kinds}")
    return from_dict(NETWORK_SHAPES[kind], data, where)


def convert(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    """A JSON value as the type `hint`: Literal, tuple, dict, str, int or float. Raises ValueError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{where}: unknown {value!r:.60}: choose one of {', '.join(inner)}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise ValueError(f"{where}: expected {len(inner)} entries, got {len(value)}")
        return tuple(convert(inner[0], entry, where) for entry in value)
    if origin is dict and isinstance(value, dict):
        return {key: convert(inner[1], entry, f"{where}.{key:.60}") for key, entry in value.items()}
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not hint:  # a bool is no int
        expected = {tuple: "a list", dict: "an object"}.get(origin) or hint.__name__
        raise ValueError(f"{where}: expected {expected}, got {value!r:.60}")
    return value


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low}" + (f" to {high}" if high > low else ""))
