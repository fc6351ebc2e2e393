"""How models are trained: settings as frozen dataclasses, and presets. Shapes are in `unirestorer.config`.

What made the shipped models is the preset "shipped" of each mode and, for `single`, "grey" after it: they
hold what checkpoints/*/config.json records under "training", and the model cards say how to run them.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from unirestorer.config import (
    ExtractorShape,
    NAFNetShape,
    NetworkShape,
    RestormerShape,
    RetinexFormerShape,
    RouterShape,
    Section,
)
from unirestorer.degradation.recipe import Band
from unirestorer.types import Mode, Task

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

NAFNET = NAFNetShape(width=32, encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), window_px=96, unshuffle=1)
RESTORMER = RestormerShape(
    width=32, encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), heads=(1, 2, 4, 8), refinement=0
)
RETINEXFORMER = RetinexFormerShape(
    width=32, encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), heads=(1, 2, 4, 8)
)
NETWORKS: dict[str, NetworkShape] = {shape.kind: shape for shape in (NAFNET, RESTORMER, RETINEXFORMER)}
RESTORMER_PAPER = RestormerShape(
    width=48, encoder=(4, 6, 6), middle=8, decoder=(6, 6, 4), heads=(1, 2, 4, 8), refinement=4
)
RETINEXFORMER_PAPER = RetinexFormerShape(width=40, encoder=(1, 2), middle=2, decoder=(2, 1), heads=(1, 2, 4))

# Experts look further around every pixel where that was measured better: much further for darkness and for
# mixtures, of which most hold darkness or haze; not at all for noise and JPEG, which are the same everywhere.
WIDE, WIDEST = replace(NAFNET, window_px=192), replace(NAFNET, window_px=256)
BY_TASK: dict[str, NetworkShape] = {
    **{task.value: WIDE for task in (Task.DERAIN, Task.DEHAZE, Task.DEBLUR, Task.DESNOW)},
    Task.LOWLIGHT.value: WIDEST,
}


@dataclass(frozen=True)
class ExtractorConfig(Section):
    """The DR extractor D: its shape and its training by contrast."""

    shape: ExtractorShape = ExtractorShape(
        tower="resnet", layers=(1, 1, 1, 1), width=32, dim=512, view_px=224
    )
    pretrained: str = ""  # open_clip weights tag; empty = from scratch
    steps: int = 20000  # upper bound of optimiser steps
    minutes: float = 60.0  # upper bound of wall time; the schedule follows whichever ends first
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    smoothing: float = 0.05  # label smoothing of the contrast
    clean_share: float = 0.2  # share of undegraded crops in every batch; the types share the rest evenly
    grey_share: float = 0.15  # share of crops shown in black and white or faded
    keep: float = 0.0  # with --init: weight of staying with its DRs, so that tree and experts still fit


@dataclass(frozen=True)
class TreeConfig(Section):
    """Topology of the degradation tree."""

    mode: Mode  # "single": K-means inside each task | "mixed": K-means over all DRs
    levels: tuple[int, ...]  # clusters per level, coarsest first
    minimum_samples: int = 24  # a leaf with fewer is merged with its nearest sibling

    def check(self) -> None:
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[0] < 1:
            raise ValueError(f"levels must grow from coarse to fine, for example 1,7,19; got {self.levels}")


@dataclass(frozen=True)
class CorpusConfig(Section):
    """The rendered training set: windows of degraded photos with their recipes."""

    window_px: int = 256  # side of a stored window
    recipes: int = 240  # per task in "single"; in all, both modes have seven times as many
    photos_per_recipe: int = 10  # windows, each of another photo, per recipe
    clean: int = 3000  # undegraded windows
    band: Band = "in"  # strengths: "in" = the trained range | "out" = the held-out band


@dataclass(frozen=True)
class ExpertsConfig(Section):
    """Expert training (paper, section 4.1): l1, cosine.

    Budgets are per level, ALL first; the last value serves all levels below.
    """

    network: NetworkShape = NAFNET
    by_node: dict[str, NetworkShape] = field(default_factory=dict)  # "level-index" or a task -> another shape
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

    def check(self) -> None:
        for name, values in (("steps", self.steps), ("minutes", self.minutes), ("lr", self.lr)):
            if not values or min(values) <= 0:
                raise ValueError(f"{name}: expected a number above 0 for each level, got {values}")


@dataclass(frozen=True)
class RoutersConfig(Section):
    """Heads and routers (Eq. 6 to 9)."""

    shape: RouterShape = RouterShape(hidden=512, layers=5)
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


@dataclass(frozen=True)
class MapConfig(Section):
    """The UMAP of the training DRs that the page draws."""

    points: int = 1250
    neighbors: int = 20


@dataclass(frozen=True)
class Config(Section):
    """All of it. `preset` is informative; the values decide."""

    preset: str
    tree: TreeConfig
    seed: int = 0
    extractor: ExtractorConfig = ExtractorConfig()
    corpus: CorpusConfig = CorpusConfig()
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    routers: RoutersConfig = RoutersConfig()
    map: MapConfig = MapConfig()


TREES: dict[Mode, TreeConfig] = {
    "single": TreeConfig("single", levels=(1, 7, 19)),
    "mixed": TreeConfig("mixed", levels=(1, 4, 8)),
}


def tiny(mode: Mode) -> Config:
    """Every stage in two minutes, to see that all of them run."""
    return Config(
        preset="tiny",
        tree=replace(TREES[mode], minimum_samples=2),
        extractor=ExtractorConfig(replace(ExtractorConfig.shape, width=8), minutes=0.4, steps=60, batch=16),
        corpus=CorpusConfig(recipes=12, photos_per_recipe=2, clean=12),
        experts=ExpertsConfig(
            network=replace(NAFNET, width=8, encoder=(1, 1), decoder=(1, 1)),
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
    )


def small(mode: Mode) -> Config:
    """A model on a few CPU cores overnight, or on a GPU in less."""
    experts = ExpertsConfig(by_node=BY_TASK) if mode == "single" else ExpertsConfig(WIDEST)
    return Config(preset="small", tree=TREES[mode], experts=experts)


def shipped(mode: Mode) -> Config:
    """What made checkpoints/single and checkpoints/mixed, on a GPU; nothing of it was black and white."""
    base = replace(small(mode), preset="shipped")
    experts = replace(base.experts, steps=(900000,) * 3, patch_px=128, optimizer="adamw", grey_share=0.0)
    if mode == "single":
        return replace(
            base,
            corpus=CorpusConfig(recipes=480, clean=4000),
            extractor=ExtractorConfig(minutes=1.25, batch=192, grey_share=0.0),
            experts=replace(experts, minutes=(1.0, 2.8, 2.25), lr=(1e-3, 6e-4, 3e-4)),
            routers=RoutersConfig(grey_share=0.0),
        )
    return replace(
        base,
        corpus=CorpusConfig(recipes=400, clean=4000),
        extractor=ExtractorConfig(minutes=1.5, steps=100000, batch=192, grey_share=0.0),
        experts=replace(experts, minutes=(0.6, 2.1, 5.8), lr=(1e-3, 7e-4, 5e-4)),
        routers=RoutersConfig(
            dropout=0.1,
            recipes=120,
            grey_share=0.0,
            table_rows=5000,
            crop_px=128,
            candidates=8,
            steps=600,
            lr=3e-4,
            alpha=0.3,
            beta=0.02,
        ),
        map=MapConfig(points=1500),
    )


def grey(mode: Mode) -> Config:
    """What taught the shipped `single` black and white, stage by stage with --init and on two CPU cores."""
    base = replace(small(mode), preset="grey")
    return replace(
        base,
        corpus=CorpusConfig(recipes=60, clean=600),
        extractor=ExtractorConfig(minutes=37.0, lr=3e-4, grey_share=0.5, keep=30.0),
        experts=replace(
            base.experts,
            minutes=(4.5, 4.5, 6.0),
            optimizer="adamw",
            lr=(6e-4,) * 3,
            grey_share=0.5,
            keep=1.5,
            ema=0.99,
        ),
        routers=RoutersConfig(recipes=60, grey_share=0.35, table_rows=2000, steps=600, lr=3e-4),
    )


def paper(mode: Mode) -> Config:
    """The paper's sizes (section 4.1): wants GPUs and days."""
    clip = replace(ExtractorConfig.shape, tower="ViT-B-32")
    return Config(
        preset="paper",
        tree=TREES[mode],
        extractor=ExtractorConfig(
            clip, pretrained="openai", minutes=2880.0, steps=200000, batch=128, lr=2e-5
        ),
        corpus=CorpusConfig(recipes=1000, photos_per_recipe=16, clean=4000),
        experts=ExpertsConfig(
            network=RESTORMER_PAPER,
            by_node={Task.LOWLIGHT.value: RETINEXFORMER_PAPER},
            steps=(300000,),
            minutes=(2880.0,),
            patch_px=128,
            optimizer="adamw",
            lr=(3e-4,),
        ),
        routers=RoutersConfig(crop_px=256, batch=8, steps=20000, beta=0.01),
    )


PRESETS: dict[str, Callable[[Mode], Config]] = {
    "tiny": tiny,
    "small": small,
    "shipped": shipped,
    "grey": grey,
    "paper": paper,
}


def preset(name: str, mode: str = "single") -> Config:
    """The preset `name` for the trees of `mode`. Raises ValueError for unknown ones, listing the known."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name](_parsed(Mode, mode, "--mode"))


def override(config: Config, assignments: list[str]) -> Config:
    """Apply command-line settings such as "experts.steps=2000,500,200" or "experts.network.width=16".

    Another `experts.network.kind` brings that kind's usual shape, of which later assignments change parts.
    Raises ValueError for a malformed assignment, an unknown key, and a value that cannot be.
    """
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign:
            raise ValueError(f"--set {assignment!r}: expected section.key=value, for example experts.batch=4")
        config = _assigned(config, path.split("."), text, f"--set {path}")
    _check(config, "--set ")
    return config


def _assigned(section: Any, path: list[str], text: str, where: str) -> Any:  # noqa: ANN401 - any section
    hints, key = typing.get_type_hints(type(section)), path[0]
    if key not in hints:
        raise ValueError(f"{where}: unknown key {key!r}; known keys are {', '.join(hints)}")
    old = getattr(section, key)
    if key == "kind":
        return NETWORKS[_parsed(Literal[tuple(NETWORKS)], text, where)]
    if len(path) > 1:
        if not is_dataclass(old):
            raise ValueError(f"{where}: {key!r} has no parts; write {key}=value")
        return replace(section, **{key: _assigned(old, path[1:], text, where)})
    if is_dataclass(old) or isinstance(old, dict):
        raise ValueError(f"{where}: {key!r} is a group; name one of its parts")
    return replace(section, **{key: _parsed(hints[key], text, where)})


def _parsed(hint: Any, text: str, where: str) -> Any:  # noqa: ANN401 - a value of the type `hint`
    """A word of the command line as the type `hint`: Literal, tuple, str, int or float. Raises ValueError."""
    if typing.get_origin(hint) is tuple:
        return tuple(_parsed(typing.get_args(hint)[0], part, where) for part in text.split(","))
    if typing.get_origin(hint) is Literal:
        if text not in typing.get_args(hint):
            known = ", ".join(typing.get_args(hint))
            raise ValueError(f"{where}: unknown {text!r}: choose one of {known}")
        return text
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"{where}: expected {hint.__name__}, got {text!r}") from None


def _check(section: Section, where: str) -> None:
    """Check a section and all of its parts. Raises ValueError that says which."""
    for name in (entry.name for entry in fields(section)):  # pyright: ignore[reportArgumentType]
        value = getattr(section, name)
        for part in value.values() if isinstance(value, dict) else [value]:
            if isinstance(part, Section):
                _check(part, f"{where}{name}.")
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, int | float) and not number >= 0:
                raise ValueError(f"{where}{name}: expected a number from 0, got {number}")
    try:
        section.check()
    except ValueError as error:
        raise ValueError(f"{where.rstrip('.')}: {error}") from None
