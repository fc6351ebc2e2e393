"""The stages that build a model, and the run that they share. Every stage resumes where it was stopped."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from training.build import parts
from training.build.data import Corpus, Photos, find_photos
from training.build.draw import draw_photos
from training.build.experts import Node, Origin, Trainer, nodes_of
from training.build.extractor import accuracy_of, corpus_drs, train_extractor
from training.build.loop import Progress
from training.build.map import fit_map
from training.build.routers import Embedded, embed, measure_l1, new_router, train_routers
from training.build.tree import fit_tree, leaf_of
from training.config import Config, CorpusConfig, override, preset
from unirestorer.checkpoint import Checkpoint, find_checkpoint
from unirestorer.degradation.recipe import Band
from unirestorer.files import atomic_write
from unirestorer.pipeline import choose_device
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree

HELD_OUT = {"recipes": 24, "photos_per_recipe": 4, "clean": 60}  # size of the corpus of held-out photos


@dataclass
class Run:
    """One training run: settings and folders; what several stages need is loaded once, when first used."""

    config: Config
    data: Path
    out: Path
    work: Path
    device: torch.device
    compile: bool
    workers: int
    shard: tuple[int, int] = (1, 1)
    init: Checkpoint | None = None  # a finished model to start from
    only: tuple[str, ...] = ()  # experts to train on alone, the others stay

    def photos(self, part: str) -> Photos:
        return find_photos(self.data, part)

    def corpus_of(self, part: str, size: CorpusConfig, seed: int) -> Corpus:
        folder = self.work / "corpus" / (part if size.band == "in" else f"{part}-{size.band}")
        return Corpus.build(folder, self.photos(part), size, self.config.tree.mode, seed, self.workers)

    @cached_property
    def corpus(self) -> Corpus:
        return self.corpus_of("experts", self.config.corpus, self.config.seed)

    def held_out(self, band: Band) -> Corpus:
        """Windows of photos that nothing is trained on, with strengths "in" or "out" of the trained range."""
        size = self.config.corpus
        small = {key: min(value, getattr(size, key)) for key, value in HELD_OUT.items()}
        return self.corpus_of("stop", replace(size, band=band, **small), self.config.seed + 1)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint as the stages so far have made it."""
        return Checkpoint(self.out)

    @cached_property
    def drs(self) -> torch.Tensor:
        """DRs (N, D) of the training corpus under the checkpoint's extractor."""
        return self.drs_of(self.checkpoint)

    def drs_of(self, source: Checkpoint) -> torch.Tensor:
        """DRs (N, D) of the training corpus under the extractor of `source`, kept on disk."""
        key = source.config["files"]["extractor.safetensors"][:16]
        path = self.work / f"drs-{key}.npy"
        if not path.is_file():
            e = corpus_drs(source.extractor(), self.corpus, self.device).numpy()
            np.save(file := io.BytesIO(), e)
            atomic_write(path, file.getvalue())
        return torch.from_numpy(np.load(path))

    @property
    def leaf_file(self) -> Path:
        return self.work / "leaf.npy"

    @cached_property
    def leaf(self) -> np.ndarray:
        """The leaf (recipes,) of each recipe: as the stage tree found it, else by the finished tree."""
        if self.leaf_file.is_file():
            return np.load(self.leaf_file)
        return leaf_of(self.corpus, self.drs, self.checkpoint.tree())

    def origin(self, name: str) -> dict[str, Any]:
        """What a stage records of the part of `init` that it started from."""
        return {"init_sha256": self.init.config["files"][name]} if self.init and self.init.has(name) else {}

    def old_expert(self, name: str, level: int) -> Origin | None:
        """Shape and weights of the expert of `init` that means the same, if there is one.

        ALL always does, types do in "single", and clusters (leaves, and all of "mixed" below ALL) only do in
        the same tree.
        """
        tree = self.config.tree
        types = level < len(tree.levels) - 1 and tree.mode == "single"
        if self.init is None or not self.init.has(f"experts/{name}.safetensors"):
            return None
        if not (level == 0 or (types and self.init.mode == "single") or self.same_tree):
            return None
        return self.init.shape(name), self.init.expert(name).state_dict()

    def expert_record(self, node: Node, progress: Progress, went_on: bool) -> dict[str, Any]:
        """What the stage records of an expert, and whether it `went_on` from one of `init`."""
        record = {
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 2),
            "samples": len(node.rows),
        }
        if self.init and went_on:
            earlier = self.init.config.get("training", {}).get("experts", {}).get(node.name, {})
            steps = earlier.get("steps", 0)
            record |= {"steps": steps + progress.step, "init_steps": steps}
            record |= self.origin(f"experts/{node.name}.safetensors")
        return record

    def old_router(self, tree: DegradationTree) -> Router | None:
        """Heads and routers of `init` to train on, where they know the tree and have the shape."""
        if self.init is None or not self.same_tree or not self.init.has("router.safetensors"):
            return None
        router = self.init.router(tree)
        return router.requires_grad_(True) if router.shape == self.config.routers.shape else None

    @property
    def same_tree(self) -> bool:
        """Whether the checkpoint has the tree of `init`: it began as a copy of that model."""
        if self.init is None or not (self.out / "config.json").is_file():
            return False
        models = (self.checkpoint, self.init)
        mine, theirs = (model.config.get("files", {}).get("tree.safetensors") for model in models)
        return mine is not None and mine == theirs

    def about(self, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """What a stage records of itself."""
        return {
            "preset": self.config.preset,
            "seed": self.config.seed,
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
            if self.device.type == "cpu"
            else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            **more,
        }


def extractor_stage(run: Run) -> None:
    """D by contrast, and its accuracy on held-out photos, in and out of the trained range."""
    config = run.config.extractor
    extractor = train_extractor(
        run.corpus,
        config,
        run.work,
        run.config.seed,
        run.device,
        compile=run.compile,
        init=run.init.extractor() if run.init else None,
    )
    accuracy = {}
    for band in ("in", "out"):
        corpus = run.held_out(band)
        accuracy[band] = accuracy_of(extractor, corpus, corpus_drs(extractor, corpus, run.device))
        type_, degree = (accuracy[band][key] for key in ("type_accuracy", "degree_accuracy_within_type"))
        count = accuracy[band]["count"]
        say(
            f"extractor, strengths {band} of the trained range, {count} windows of held-out photos: "
            f"type {type_:.1%}, degree {degree:.1%}"
        )
    about = run.about(settings=asdict(config), held_out=accuracy, **run.origin("extractor.safetensors"))
    parts.add_mode(run.out, run.config.tree.mode)
    parts.add_extractor(run.out, extractor.cpu(), about)


def tree_stage(run: Run) -> None:
    """Hierarchical clustering of the training DRs; a tree of the same extractor and settings is kept."""
    origin = {
        "extractor_sha256": run.checkpoint.config["files"]["extractor.safetensors"],
        "settings": asdict(run.config.tree),
    }
    old = run.checkpoint.config.get("training", {}).get("tree", {})
    if run.leaf_file.is_file() and json.loads(json.dumps(origin)) == {key: old.get(key) for key in origin}:
        return
    fitted = fit_tree(run.corpus, run.drs, run.config.tree, run.config.seed)
    for note in fitted.report["merged_leaves"]:
        say(note)
    np.save(file := io.BytesIO(), fitted.leaf)
    atomic_write(run.leaf_file, file.getvalue())
    parts.add_tree(run.out, fitted.tree, run.about(**origin, **fitted.report))
    say("leaves: " + "; ".join(fitted.tree.names[-1]))


def experts_stage(run: Run) -> None:
    """Every expert from its parent's weights; each is added to the checkpoint as soon as it is done.

    With --init ALL starts from that model's, and so do the TYPE experts where the other tree knows the same
    types; what belongs to clusters (the leaves, and every level of "mixed" below ALL) is new, unless OUT is a
    copy of that model. Then every expert, or those that --only names, is trained on.
    """
    if (run.only or run.config.experts.keep) and not run.same_tree:
        raise ValueError(
            "--only and experts.keep train experts of a finished model on: copy its folder to OUT, and name "
            "it by --init"
        )
    trainer = Trainer(
        run.corpus, run.config.experts, run.work, run.config.seed, run.device, compile=run.compile
    )
    e = run.drs if run.config.tree.mode == "mixed" else None  # in "single" a row's task is its own
    tree = run.checkpoint.tree()
    chosen = {tree.expert_number(name) for name in run.only or tree.expert_names}
    nodes = [node for number, node in enumerate(nodes_of(tree, run.leaf, run.corpus, e)) if number in chosen]
    share, shares = run.shard
    last = len(run.config.tree.levels) - 1
    done: dict[str, Origin] = {}
    for level in range(last + 1):
        mine = [
            node
            for place, node in enumerate(nodes)
            if node.level == level and (level < last or place % shares == share - 1)  # leaves are shared out
        ]
        again = {node.name: run.old_expert(node.name, level) for node in mine}
        origins = [again[node.name] or done.get(node.parent) for node in mine]
        for node, trained in zip(mine, trainer.train_together(mine, origins), strict=True):
            shape, weights, progress = trained
            done[node.name] = (shape, weights)
            record = run.expert_record(node, progress, again[node.name] is not None)
            parts.add_expert(run.out, node.name, shape, trainer.loaded(shape, weights).cpu(), record)
    about = run.about(settings=asdict(run.config.experts))
    if run.only:
        parts.add_to_config(run.out, training={"experts_on": {**about, "only": run.only}})
    else:
        parts.add_to_config(run.out, training={"experts": about})


def routers_stage(run: Run) -> None:
    """Heads and routers; the experts are measured on photos that none of them saw.

    With --init, and the tree of that model, its heads and routers are trained on.
    """
    config, seed = run.config.routers, run.config.seed
    tree = run.checkpoint.tree()
    data = embedded(run)
    files = run.checkpoint.config["files"]
    experts = [files[f"experts/{name}.safetensors"] for name in tree.expert_names]
    measured_with = json.dumps(
        [
            data.key,
            files["extractor.safetensors"],
            files["tree.safetensors"],
            experts,
            seed,
            config.table_rows,
            config.candidates,
        ]
    )
    rows, l1 = measure_l1(
        tree,
        lambda number: run.checkpoint.expert(tree.expert_names[number]),
        data,
        config,
        seed,
        run.work / "routers" / f"l1-{hashlib.sha256(measured_with.encode()).hexdigest()[:16]}.npz",
        run.device,
    )
    router = run.old_router(tree) or new_router(tree, run.drs, config, seed)
    writer = SummaryWriter(str(run.work / "tensorboard"))
    result = train_routers(router, tree, data, rows, l1, config, seed, writer)
    writer.close()
    say(
        f"routers on {result['held_out_photos']} held-out photos: type {result['type_accuracy']:.1%}, leaf "
        f"{result['leaf_accuracy']:.1%}, loads {[round(x, 2) for x in result['level_loads']]}"
    )
    about = run.about(settings=asdict(config), **run.origin("router.safetensors"), **result)
    parts.add_router(run.out, router, about)


def embedded(run: Run) -> Embedded:
    """The routers' photos with their DRs; kept on disk per extractor."""
    key = run.checkpoint.config["files"]["extractor.safetensors"][:16]
    return embed(
        run.checkpoint.extractor(),
        run.checkpoint.tree(),
        run.photos("routers"),
        run.photos("experts"),
        run.config.routers,
        run.config.tree.mode,
        run.config.seed + 2,
        run.work / "embedded" / key,
        run.device,
    )


def map_stage(run: Run) -> None:
    """The UMAP that the page draws."""
    tree = run.checkpoint.tree()
    router = run.checkpoint.router(tree)
    map_ = fit_map(
        run.corpus, run.drs, run.leaf, tree, router, embedded(run), run.config.map, run.config.seed
    )
    parts.add_map(run.out, map_, run.about(points=len(map_.xy)))


def longer_stage(run: Run) -> None:
    """ALL trained on, on all degradations: by the steps of the experts below it on a path, at their rates.

    The weights go to WORK/longer.safetensors, for evaluate --longer; the model stays as it is.
    """
    tree, records = run.checkpoint.tree(), run.checkpoint.config["training"]["experts"]
    every = nodes_of(tree, run.leaf, run.corpus)
    levels = range(tree.levels)
    steps = [max(records[node.name]["steps"] for node in every if node.level == level) for level in levels]
    config = replace(run.config.experts, steps=tuple(steps), minutes=(math.inf,) * tree.levels)
    work = run.work / "longer"
    trainer = Trainer(run.corpus, config, work, run.config.seed, run.device, compile=run.compile)
    shape, weights = run.checkpoint.shape(every[0].name), run.checkpoint.expert(every[0].name).state_dict()
    for level in levels[1:]:
        node = replace(every[0], level=level)
        shape, weights, _ = next(trainer.train_together([node], [(shape, weights)]))
    data = parts.half(trainer.loaded(shape, weights).cpu())
    atomic_write(run.work / "longer.safetensors", data)
    say(f"ALL of {sum(steps)} steps: {run.work / 'longer.safetensors'}")


STAGES: dict[str, Callable[[Run], None]] = {  # in the order of `all`
    "extractor": extractor_stage,
    "tree": tree_stage,
    "experts": experts_stage,
    "routers": routers_stage,
    "map": map_stage,
}
VERBS = {**STAGES, "longer": longer_stage}


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


# From the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run, which all stages share."""
    add = parser.add_argument
    add("--preset", default="small", help="tiny, small, shipped, grey or paper")
    add("--mode", default="single", help="single or mixed")
    add("--data", type=Path, help="folder of training photos; drawn photos when left out with tiny")
    add("--out", type=Path, required=True, help="the checkpoint's folder")
    add("--work", type=Path, help="folder for corpora and unfinished state; default OUT/work")
    add("--set", action="append", default=[], metavar="section.key=value", help="override a setting")
    add("--init", metavar="CHECKPOINT", help="extractor and experts: go on from this finished model")
    add("--shard", default="1/1", metavar="i/n", help="experts: train the i-th of n shares of the leaves")
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="EXPERT",
        help="experts: train these alone on, such as 1-2 2-6; OUT is a copy of the model of --init",
    )
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--workers", type=int, default=2, help="processes that render photos")
    add("--no-compile", action="store_true", help="do without torch.compile (needs a C++ compiler)")


def make_run(arguments: argparse.Namespace) -> Run:
    """The run that the command line asks for, with its settings in WORK/settings.json. Raises ValueError."""
    config = override(preset(arguments.preset, arguments.mode), arguments.set)
    work = arguments.work or arguments.out / "work"
    data = arguments.data
    if data is None:
        if config.preset != "tiny":
            raise ValueError(
                "--data is missing: name the folder of training photos (only the tiny preset draws its own)"
            )
        data = draw_photos(work / "drawn", seed=config.seed)
    if not data.is_dir():
        raise ValueError(f"no folder {data}: --data names the folder of training photos")
    index, sign, count = arguments.shard.partition("/")
    if not (sign and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"--shard {arguments.shard!r}: expected i/n with 1 <= i <= n, for example 1/3")
    run = Run(
        config,
        data,
        arguments.out,
        work,
        choose_device(arguments.device),
        not arguments.no_compile and config.preset != "tiny",
        arguments.workers,
        (int(index), int(count)),
        Checkpoint(find_checkpoint(arguments.init)) if arguments.init else None,
        tuple(arguments.only),
    )
    work.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(config), indent=1)
    atomic_write(work / "settings.json", text.encode())
    return run


def run(arguments: argparse.Namespace) -> None:
    """The stage that the command line names, or all. Raises ValueError for bad input."""
    training_run = make_run(arguments)
    for stage in STAGES.values() if arguments.verb == "all" else [VERBS[arguments.verb]]:
        stage(training_run)
