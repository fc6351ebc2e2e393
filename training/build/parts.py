"""Writing a checkpoint: training stages add their parts one by one.

Every write is atomic. Between a part and config.json the part's hash does not match, and a reader says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from unirestorer.checkpoint import FORMAT, Checkpoint
from unirestorer.config import NetworkShape
from unirestorer.degradation.recipe import RANGES
from unirestorer.extractor import Extractor
from unirestorer.files import atomic_write, sha256
from unirestorer.map import DegradationMap
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree
from unirestorer.types import Mode

Section = dict[str, Any]


def add_mode(folder: Path, mode: Mode) -> None:
    """Record what photos the model is trained on; starts the checkpoint where there is none."""
    add_to_config(folder, model={"mode": mode, "ranges": ranges_of(mode)})


def ranges_of(mode: Mode) -> Section:
    """The strengths that are trained ("in") and held out ("out"), of each task, as config.json has them."""
    return {
        task.value: {band: list(ends) for band, ends in bands.items()} for task, bands in RANGES[mode].items()
    }


def add_extractor(folder: Path, extractor: Extractor, training: Section) -> None:
    section = {**asdict(extractor.shape), "captions": list(extractor.captions)}
    add_part(
        folder, "extractor.safetensors", half(extractor), {"extractor": section}, {"extractor": training}
    )


def add_tree(folder: Path, tree: DegradationTree, training: Section) -> None:
    tensors = {f"centers.{i}": c.float().contiguous() for i, c in enumerate(tree.centers)}
    tensors |= {f"parents.{i}": p.contiguous() for i, p in enumerate(tree.parents)}
    sets = [{"+".join(sorted(tasks)): n for tasks, n in leaf.items()} for leaf in tree.task_sets]
    section = {"names": [list(names) for names in tree.names], "task_sets": sets}
    add_part(folder, "tree.safetensors", save(tensors), {"tree": section}, {"tree": training})


def add_expert(folder: Path, name: str, shape: NetworkShape, network: nn.Module, training: Section) -> None:
    file, experts = f"experts/{name}.safetensors", {"experts": {name: asdict(shape)}}
    add_part(folder, file, half(network), experts, {"experts": {name: training}})


def add_router(folder: Path, router: Router, training: Section) -> None:
    model = {"routers": asdict(router.shape)}
    add_part(folder, "router.safetensors", half(router), model, {"routers": training})


def add_map(folder: Path, map_: DegradationMap, training: Section) -> None:
    add_part(folder, "map.npz", map_.to_bytes(), {}, {"map": training})


def add_part(folder: Path, name: str, data: bytes, model: Section, training: Section) -> None:
    """Write one file of a checkpoint and record its hash, what it is and how it was made."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / name, data)
    add_to_config(folder, {name: sha256(data)}, model, training)


def add_to_config(
    folder: Path,
    files: dict[str, str] | None = None,
    model: Section | None = None,
    training: Section | None = None,
) -> None:
    """Set hashes and sections of config.json; "experts" are added to those that stand there."""
    exists = (folder / "config.json").is_file()
    config: Section = Checkpoint(folder).config if exists else {"format": FORMAT, "model": {}}
    config.setdefault("files", {}).update(files or {})
    for name, sections in (("model", model or {}), ("training", training or {})):
        old = config.setdefault(name, {})
        if "experts" in sections:
            sections = {**sections, "experts": {**old.get("experts", {}), **sections["experts"]}}
        old.update(sections)
    text = json.dumps(config, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "config.json", text.encode())


def half(module: nn.Module) -> bytes:
    """A module's weights as safetensors bytes, floating ones in half precision."""
    state = {key: value.detach().cpu() for key, value in module.state_dict().items()}
    return save({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()})
