"""A model is a folder: config.json, safetensors files and a map. Every file is hashed, nothing is pickled.

Readers check each file's hash before they use it and name the file that fails. config.json says under "model"
what the model is, and under "training" how it was made, which serving never reads.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from unirestorer import config
from unirestorer.extractor import Extractor
from unirestorer.files import sha256
from unirestorer.map import DegradationMap
from unirestorer.networks import Network, build_network
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree
from unirestorer.types import Mode, Task

FORMAT, OLD_FORMAT = "unirestorer/2", "unirestorer/1"
MODEL_KEYS = ("mode", "ranges", "extractor", "tree", "experts", "routers")
MAX_CONFIG_BYTES = 16 * 2**20
MAX_PARAMETERS = 500_000_000  # of any part: configs come with downloaded checkpoints
NOT_RUN = "the training stage that makes it has not run"
LIBRARY_FOLDER = Path(__file__).resolve().parent.parent / "checkpoints"
HUB_FILES = [
    *("config.json", "extractor.safetensors", "tree.safetensors", "router.safetensors", "map.npz"),
    *("experts/*.safetensors", "metrics.json", "README.md", "*.jpg", "*.png"),
]


def shipped() -> list[str]:
    """The names of the checkpoints that this repository came with, "single" first."""
    names = [path.parent.name for path in LIBRARY_FOLDER.glob("*/config.json")]
    return sorted(names, key=lambda name: (name != "single", name)) or ["single"]


def find_checkpoint(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint: a folder's path, the name of one in `checkpoints/`, or a hub id
    "user/name".

    Only a hub id uses the network, and only for files that are not in the hub client's cache. Raises
    ValueError.
    """
    with contextlib.suppress(OSError):  # a name that no file can have
        for folder in (Path(name), LIBRARY_FOLDER / name):
            if (folder / "config.json").is_file():
                return folder
    if os.path.exists(name):
        raise ValueError(f"{name} is no checkpoint: it has no config.json")
    parts = str(name).split("/")
    if len(parts) != 2 or not all(part and not part.startswith(".") for part in parts):
        raise ValueError(f"no checkpoint {str(name)!r:.100}: give a folder, 'single' or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:  # of the network and the server, and of the id
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"cannot get checkpoint {str(name)!r} from the hub: {reason}") from None


class PartError(ValueError):
    """A checkpoint's file is missing, damaged or foreign: not the mistake of whoever gave a photo."""


class Checkpoint:
    """An opened checkpoint folder; its parts are read on demand."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ValueError when `folder` has no valid config.json of this format."""
        self.folder = Path(folder)
        path = self.folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{self.folder} is no checkpoint: it has no config.json")
        try:
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise ValueError(f"it has over {MAX_CONFIG_BYTES // 2**20} MB")
            self.config: dict[str, Any] = json.loads(path.read_bytes())
        except (ValueError, RecursionError, OSError) as error:
            raise ValueError(f"{path} is damaged: {str(error):.100}") from None
        format_ = self.config.get("format") if isinstance(self.config, dict) else type(self.config).__name__
        if format_ != FORMAT:
            hint = f": run `python -m training migrate {self.folder}`" if format_ == OLD_FORMAT else ""
            raise ValueError(f"{path}: expected format {FORMAT!r}, got {format_!r:.60}{hint}")
        config.refuse_unknown(self._object("model"), MODEL_KEYS, self._place("model"))

    @property
    def mode(self) -> Mode:
        """What the model is for: photos with one degradation, or with several at once."""
        return config.convert(Mode, self._object("model").get("mode"), self._place("model.mode"))

    @property
    def ranges(self) -> dict[Task, config.Range]:
        """Strengths of each degradation that the model knows, trained and beyond, in the order of `Task`."""
        rows, ranges = self._object("model", "ranges"), {}
        config.refuse_unknown(rows, list(Task), self._place("model.ranges"))
        for task in [task for task in Task if task in rows]:
            bands, place = rows[task], self._place(f"model.ranges.{task}")
            if not isinstance(bands, dict) or set(bands) != {"in", "out"}:
                raise ValueError(f"{place}: expected the keys 'in' and 'out', got {bands!r:.60}")
            strengths = {"trained": bands["in"], "beyond": bands["out"]}
            ranges[task] = config.from_dict(config.Range, strengths, place)
        return ranges

    def read(self, name: str) -> bytes:
        """A part's bytes, read at once and checked. Raises ValueError that names the file."""
        path = self.folder / name
        expected = self._object("files").get(name)
        if expected is None:
            raise ValueError(self._place(f"it lists no {name}; {NOT_RUN}"))
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PartError(f"cannot read {path}: {error.strerror}") from None
        if sha256(data) != expected:
            raise PartError(f"{path} is damaged or foreign: its SHA-256 is not config.json's; fetch it again")
        return data

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors part, floating ones in single precision."""
        try:
            tensors = load(self.read(name))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{self.folder / name} is no safetensors file: {str(error):.100}") from None
        return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}

    def has(self, name: str) -> bool:
        return name in self._object("files")

    def tree(self) -> DegradationTree:
        """The degradation tree."""
        shape = self._section(config.TreeShape, "tree")
        tensors = self.tensors("tree.safetensors")
        try:
            levels = len(shape.names)
            tree = DegradationTree(
                tuple(tensors[f"centers.{i}"] for i in range(levels)),
                tuple(tensors[f"parents.{i}"] for i in range(levels)),
                tuple({_tasks(key): n for key, n in sets.items()} for sets in shape.task_sets),
                shape.names,
            )
            if f"centers.{levels}" in tensors:
                raise ValueError("more levels than names")
            tree.check()
            return tree
        except (KeyError, ValueError) as error:
            raise ValueError(self._place(f"the tree is damaged ({error})")) from None

    def extractor(self) -> Extractor:
        """D with its weights, in evaluation mode."""
        section, place = dict(self._object("model", "extractor")), self._place("model.extractor")
        captions = config.convert(tuple[str, ...], section.pop("captions", None), f"{place}.captions")
        shape = config.from_dict(config.ExtractorShape, section, place)
        return self._filled(lambda: Extractor(shape, captions), "extractor.safetensors")

    def router(self, tree: DegradationTree) -> Router:
        """Heads and routers with their weights, in evaluation mode."""
        shape = self._section(config.RouterShape, "routers")
        dim, table = tree.centers[-1].shape[1], tree.expert_table
        return self._filled(lambda: Router(dim, table, shape), "router.safetensors")

    def expert(self, name: str) -> Network:
        """The network of expert "level-index" with its weights, in evaluation mode."""
        shape = self.shape(name)
        return self._filled(lambda: build_network(shape), f"experts/{name}.safetensors")

    def shape(self, name: str) -> config.NetworkShape:
        """The shape of expert "level-index"."""
        shapes = self._object("model", "experts")
        if name not in shapes:
            raise ValueError(f"{self.folder} has no expert {name}: it has {', '.join(shapes) or 'none'}")
        return config.network_from_dict(shapes[name], self._place(f"model.experts.{name}"))

    def map(self) -> DegradationMap:
        """The map of training DRs."""
        data = self.read("map.npz")
        try:
            return DegradationMap.from_bytes(data)
        except ValueError as error:
            raise ValueError(f"{self.folder / 'map.npz'}: {error}") from None

    def _place(self, words: str) -> str:
        return f"{self.folder}/config.json: {words}"

    def _section(self, kind: type[config.S], name: str) -> config.S:
        """The part `name` of what the model is."""
        return config.from_dict(kind, self._object("model", name), self._place(f"model.{name}"))

    def _object(self, *path: str) -> dict[str, Any]:
        """The object at `path` in config.json. Raises ValueError where there is none."""
        value: Any = self.config
        for number, key in enumerate(path, 1):
            if key not in value:
                raise ValueError(self._place(f"{'.'.join(path)} is missing; {NOT_RUN}"))
            value = value[key]
            if not isinstance(value, dict):
                raise ValueError(self._place(f"{'.'.join(path[:number])} should be an object"))
        return value

    def _filled(self, build: Callable[[], nn.Module], name: str) -> Any:  # noqa: ANN401 - what is built
        """`build()` with the weights of the part `name`, once its size is known to be sensible."""
        with torch.device("meta"):  # shapes without memory
            module = build()
            count = sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
        if count > MAX_PARAMETERS:
            size, most = count / 1e6, MAX_PARAMETERS / 1e6
            raise ValueError(self._place(f"{name} has {size:.0f} million parameters, allowed are {most:.0f}"))
        module = build()
        try:
            module.load_state_dict(self.tensors(name), strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{self.folder / name} does not fit config.json: {reason}") from None
        return module.eval().requires_grad_(False)


def _tasks(key: str) -> frozenset[Task]:
    return frozenset(Task(name) for name in key.split("+") if name)


def verify(folder: str | Path) -> list[str]:
    """Check config.json, every file's hash and shape, and run a forward pass; the names of the checked parts.

    Raises ValueError.
    """
    checkpoint = Checkpoint(folder)
    _ = checkpoint.mode, checkpoint.ranges
    tree = checkpoint.tree()
    extractor, router = checkpoint.extractor(), checkpoint.router(tree)
    with torch.inference_mode():
        x = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
        route = router.route(router.estimate(extractor(x)))
        if not torch.isfinite(route.leaf_probs).all():
            raise ValueError(f"{folder}: the router's probabilities are not finite")
        for name in tree.expert_names:
            if not torch.isfinite(checkpoint.expert(name)(x)).all():
                raise ValueError(f"{folder}/experts/{name}.safetensors: the expert's output is not finite")
    if checkpoint.has("map.npz"):
        checkpoint.map()
    for name in checkpoint.config["files"]:
        checkpoint.read(name)
    return sorted(checkpoint.config["files"])
