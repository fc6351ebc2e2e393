"""Every setting of the product as frozen dataclasses, and the three presets.

A setting that nobody declared is an error that lists the declared ones; nothing falls back to a default in
silence.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from unirestorer.types import Task

# The nineteen degrees of the single-degradation tree (paper, section D).
LEAVES_PER_TASK = {
    Task.DERAIN: 4,
    Task.DEHAZE: 2,
    Task.DENOISE: 3,
    Task.DEBLUR: 2,
    Task.LOWLIGHT: 2,
    Task.DESNOW: 3,
    Task.DEJPEG: 3,
}


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of one expert network. What a field means to which kind stands beside it."""

    kind: str = "nafnet"  # "nafnet" | "restormer" | "retinexformer"
    width: int = 32  # channels at full resolution
    encoder: tuple[int, ...] = (1, 1, 1)  # blocks per resolution, finest first
    middle: int = 1  # blocks at the coarsest resolution
    decoder: tuple[int, ...] = (1, 1, 1)  # blocks per resolution, coarsest first
    heads: tuple[int, ...] = (
        1,
        2,
        4,
        8,
    )  # restormer, retinexformer: attention heads per resolution, finest first
    refinement: int = 0  # restormer: blocks after the decoder
    stages: int = 1  # retinexformer: repeated estimator-restorer stages
    window_px: int = 96  # nafnet: side of the window that pooled statistics cover at test time
    unshuffle: int = 1  # nafnet: pixel-unshuffle factor of the stem, 1 = full resolution


# Experts look further around every pixel where that was measured better: much further for darkness and for
# mixtures, of which most hold darkness or haze; not at all for noise and JPEG, which are the same everywhere.
WIDE_WINDOW = NetworkConfig(window_px=192)
WIDEST_WINDOW = NetworkConfig(window_px=256)


@dataclass(frozen=True)
class ExtractorConfig:
    """The DR extractor D: an open_clip tower and its training by contrast."""

    tower: str = "resnet"  # "resnet" (small, from scratch) or an open_clip model name
    pretrained: str = ""  # open_clip weights tag; empty = from scratch
    layers: tuple[int, ...] = (1, 1, 1, 1)  # resnet: bottlenecks per stage
    width: int = 32  # resnet: channels of the first stage
    dim: int = 512  # D, length of the DR
    view_px: int = 224  # side of one view, native pixels
    steps: int = 20000  # upper bound of optimiser steps
    minutes: float = 60.0  # upper bound of wall time; the schedule follows whichever ends first
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    smoothing: float = 0.05  # label smoothing of the contrast
    clean_share: float = 0.2  # share of undegraded crops in every batch; the types share the rest evenly
    grey_share: float = 0.15  # share of crops shown in black and white or faded
    keep: float = 0.0  # with --init: weight of staying with its DRs, so that tree and experts still fit

    def check(self) -> None:
        """Raises ValueError for a shape that no extractor can have (configs may come from strangers)."""
        sizes = {"dim": (self.dim, 4096), "width": (self.width, 4096), "view_px": (self.view_px, 1024)}
        for name, (value, highest) in sizes.items():
            if not 8 <= value <= highest:
                raise ValueError(f"extractor.{name}: expected 8 to {highest}, got {value}")
        if len(self.layers) != 4 or not all(1 <= count <= 64 for count in self.layers):
            raise ValueError(f"extractor.layers: expected four counts from 1 to 64, got {self.layers}")


@dataclass(frozen=True)
class TreeConfig:
    """Topology of the degradation tree."""

    setting: str = "single"  # "single": K-means inside each task | "mixed": K-means over all DRs
    levels: tuple[int, ...] = (1, 7, 19)  # clusters per level, coarsest first
    minimum_samples: int = 24  # a leaf with fewer is merged with its nearest sibling


@dataclass(frozen=True)
class CorpusConfig:
    """The rendered training set: windows of degraded photos with their recipes."""

    window_px: int = 256  # side of a stored window
    recipes: int = 240  # recipes per task (single), recipes / 7 in all times 7 (mixed)
    photos_per_recipe: int = 10  # windows, each of another photo, per recipe
    clean: int = 3000  # undegraded windows
    band: str = "in"  # strengths: "in" = the trained range | "out" = the held-out band


@dataclass(frozen=True)
class ExpertsConfig:
    """Expert training (paper, section 4.1): l1, cosine. Budgets are per level, ALL first; the last value
    serves all levels below.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    by_node: dict[str, NetworkConfig] = field(
        default_factory=lambda: (
            {task.value: WIDE_WINDOW for task in (Task.DERAIN, Task.DEHAZE, Task.DEBLUR, Task.DESNOW)}
            | {Task.LOWLIGHT.value: WIDEST_WINDOW}
        )
    )  # "level-index" or a task's name -> another shape
    steps: tuple[int, ...] = (60000, 15000, 5000)
    minutes: tuple[float, ...] = (75.0, 17.0, 5.0)  # of each expert; on a GPU of all of a level, side by side
    batch: int = 8
    patch_px: int = 64
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: tuple[float, ...] = (1e-2, 5e-3, 3e-3)  # Muon's, of matrices; AdamW wants a tenth
    clean_share: float = 0.12  # share of undegraded patches in every batch
    grey_share: float = 0.1  # share of patches shown in black and white or faded
    keep: float = 0.0  # for an expert trained on: weight of its earlier answers, which patches in colour keep
    ema: float = 0.999  # decay of the moving average of the weights


@dataclass(frozen=True)
class RoutersConfig:
    """Heads and routers (Eq. 6 to 9)."""

    hidden: int = 512
    layers: int = 5
    dropout: float = 0.3  # of the heads: a few thousand photos are soon learned by heart
    recipes: int = 90  # recipes per task whose photos make up the heads' training set
    photos_per_recipe: int = 6  # of the routers' own photos
    trained_photos_per_recipe: int = 4  # of the extractor's photos: more scenes for the heads
    grey_share: float = 0.15  # share of photos shown in black and white or faded
    table_rows: int = 2500  # crops whose l1 under each candidate expert is measured
    crop_px: int = 96  # side of those crops
    candidates: int = 3  # likeliest leaves whose paths are measured
    steps: int = 1000
    batch: int = 512
    lr: float = 1e-3
    alpha: float = 0.1  # weight of the uncertainty loss (Eq. 7)
    beta: float = 0.05  # weight of the load loss (Eq. 8)

    def check(self) -> None:
        """Raises ValueError for a shape that no router can have (configs may come from strangers)."""
        if not (1 <= self.hidden <= 8192 and 1 <= self.layers <= 64):
            raise ValueError(
                f"routers: expected hidden 1 to 8192 and layers 1 to 64, got {self.hidden} and {self.layers}"
            )


@dataclass(frozen=True)
class MapConfig:
    """The UMAP of the training DRs that the page draws."""

    points: int = 1250
    neighbors: int = 20


@dataclass(frozen=True)
class Config:
    """All of it. `preset` is informative; the values decide."""

    preset: str = "small"
    seed: int = 0
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    routers: RoutersConfig = field(default_factory=RoutersConfig)
    map: MapConfig = field(default_factory=MapConfig)


RESTORMER_PAPER = NetworkConfig(
    kind="restormer",
    width=48,
    encoder=(4, 6, 6),
    middle=8,
    decoder=(6, 6, 4),
    heads=(1, 2, 4, 8),
    refinement=4,
)
RETINEXFORMER_PAPER = NetworkConfig(
    kind="retinexformer", width=40, encoder=(1, 2), middle=2, decoder=(2, 1), heads=(1, 2, 4), stages=1
)

PRESETS: dict[str, Config] = {
    "tiny": Config(
        preset="tiny",
        extractor=ExtractorConfig(width=8, minutes=0.4, steps=60, batch=16),
        corpus=CorpusConfig(recipes=12, photos_per_recipe=2, clean=12),
        tree=TreeConfig(minimum_samples=2),
        experts=ExpertsConfig(
            network=NetworkConfig(width=8, encoder=(1, 1), middle=1, decoder=(1, 1)),
            by_node={},
            steps=(8, 3, 2),
            minutes=(0.3, 0.1, 0.05),
            batch=2,
            patch_px=32,
        ),
        routers=RoutersConfig(
            recipes=6,
            photos_per_recipe=2,
            trained_photos_per_recipe=1,
            table_rows=21,
            crop_px=64,
            steps=40,
            batch=32,
        ),
        map=MapConfig(points=120, neighbors=5),
    ),
    "small": Config(),
    "paper": Config(
        preset="paper",
        extractor=ExtractorConfig(
            tower="ViT-B-32", pretrained="openai", minutes=2880.0, steps=200000, batch=128, lr=2e-5
        ),
        experts=ExpertsConfig(
            network=RESTORMER_PAPER,
            by_node={Task.LOWLIGHT.value: RETINEXFORMER_PAPER},
            steps=(300000,),
            minutes=(2880.0,),
            batch=8,
            patch_px=128,
            optimizer="adamw",
            lr=(3e-4,),
        ),
        corpus=CorpusConfig(recipes=1000, photos_per_recipe=16, clean=4000),
        routers=RoutersConfig(crop_px=256, batch=8, steps=20000),
    ),
}

SETTINGS: dict[str, TreeConfig] = {
    "single": TreeConfig(setting="single", levels=(1, 7, 19)),
    "mixed": TreeConfig(setting="mixed", levels=(1, 4, 8)),
}


def preset(name: str, setting: str = "single") -> Config:
    """The named preset ("tiny", "small", "paper") with the named tree ("single", "mixed").

    Raises ValueError for an unknown name, listing the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    if setting not in SETTINGS:
        raise ValueError(f"unknown setting {setting!r}: choose one of {', '.join(SETTINGS)}")
    config = PRESETS[name]
    if setting == "mixed":
        network = replace(config.experts.network, window_px=WIDEST_WINDOW.window_px)
        config = replace(config, experts=replace(config.experts, network=network))
    return replace(config, tree=replace(SETTINGS[setting], minimum_samples=config.tree.minimum_samples))


def to_dict(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the dataclasses above
    """A config dataclass as plain JSON data."""
    return dataclasses.asdict(config)


def from_dict(kind: type, data: Any, where: str = "config") -> Any:  # noqa: ANN401
    """Rebuild the dataclass `kind` from JSON data.

    Raises ValueError that names the place when a key is unknown or a value has the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object, got {type(data).__name__}")
    known = {f.name for f in fields(kind)}
    for key in data:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; known keys are {', '.join(sorted(known))}")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def override(config: Config, assignments: list[str]) -> Config:
    """Apply command-line settings such as "experts.steps=2000,500,200" or "experts.network.width=16".

    Raises ValueError for a malformed assignment, an unknown key or a value of the wrong type.
    """
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign:
            raise ValueError(f"--set {assignment!r}: expected section.key=value, for example experts.batch=4")
        config = _assign(config, path.split("."), text, path)
    return config


def _assign(config: Any, path: list[str], text: str, where: str) -> Any:  # noqa: ANN401
    hints = typing.get_type_hints(type(config))
    key = path[0]
    if key not in hints:
        raise ValueError(f"--set {where}: unknown key {key!r}; known keys are {', '.join(sorted(hints))}")
    if len(path) > 1:
        if not is_dataclass(hints[key]):
            raise ValueError(f"--set {where}: {key!r} has no parts; write {key}=value")
        return replace(config, **{key: _assign(getattr(config, key), path[1:], text, where)})
    if is_dataclass(hints[key]) or typing.get_origin(hints[key]) is dict:
        raise ValueError(f"--set {where}: {key!r} is a group; name one of its parts")
    value: Any = text.split(",") if typing.get_origin(hints[key]) is tuple else text
    return replace(config, **{key: _convert(hints[key], value, f"--set {where}", from_text=True)})


def _convert(hint: Any, value: Any, where: str, *, from_text: bool = False) -> Any:  # noqa: ANN401
    """`value` as the type `hint`: dataclass, dict of dataclasses, tuple, str, int, float or bool."""
    origin = typing.get_origin(hint)
    if is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
        item = typing.get_args(hint)[1]
        return {str(key): _convert(item, entry, f"{where}.{key}") for key, entry in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {type(value).__name__}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, entry, where, from_text=from_text) for entry in value)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{where}: expected {' or '.join(typing.get_args(hint))}, got {value!r}")
        return value
    if isinstance(hint, types.UnionType):
        raise AssertionError(f"{where}: settings have one type each")
    if from_text:
        try:
            return hint(value)
        except ValueError:
            raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
