"""A model is a folder: config.json, safetensors files and a map. Every file is hashed; nothing is
pickled.

Training stages add their parts one by one; readers check each file's hash before they use it and name the
file that fails.
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
from safetensors.torch import load, save
from torch import Tensor, nn

from unirestorer.config import ExtractorConfig, NetworkConfig, RoutersConfig, from_dict, to_dict
from unirestorer.extractor import Extractor
from unirestorer.files import atomic_write, sha256
from unirestorer.map import DegradationMap
from unirestorer.networks import MAX_PARAMETERS, Network, build_network
from unirestorer.routing import Router
from unirestorer.tree import DegradationTree
from unirestorer.types import Task

FORMAT = "unirestorer/1"
MAX_CONFIG_BYTES = 16 * 2**20
LIBRARY_FOLDER = Path(__file__).resolve().parent.parent / "checkpoints"
HUB_FILES = [
    *("config.json", "*.safetensors", "map.npz", "metrics.json", "README.md", "*.jpg"),
    "experts/*.safetensors",
]


def shipped() -> list[str]:
    """The names of the checkpoints that this repository came with, "single" first."""
    found = [path.parent.name for path in LIBRARY_FOLDER.glob("*/config.json")]
    return sorted(found, key=lambda name: (name != "single", name)) or ["single"]


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
        raise ValueError(
            f"no checkpoint {str(name)!r:.100}: give a folder with a config.json, 'single' or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=HUB_FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"cannot get checkpoint {str(name)!r} from the hub: {str(error).splitlines()[0]:.160}"
        ) from None


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
        if not isinstance(self.config, dict) or self.config.get("format") != FORMAT:
            found = self.config.get("format") if isinstance(self.config, dict) else type(self.config).__name__
            raise ValueError(f"{path}: expected format {FORMAT!r}, got {found!r}")

    def read(self, name: str) -> bytes:
        """A part's bytes, read at once and checked. Raises ValueError that names the file."""
        path = self.folder / name
        expected = self._section("files").get(name)
        if expected is None:
            raise ValueError(
                f"{self.folder}: config.json lists no {name}; the training stage that makes it has not run"
            )
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PartError(f"cannot read {path}: {error.strerror}") from None
        if sha256(data) != expected:
            raise PartError(
                f"{path} is damaged or foreign: its SHA-256 is not the one in config.json; fetch it again"
            )
        return data

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors part, floating ones in single precision."""
        try:
            tensors = load(self.read(name))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{self.folder / name} is no safetensors file: {str(error):.100}") from None
        return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}

    def has(self, name: str) -> bool:
        return name in self._section("files")

    def tree(self) -> DegradationTree:
        """The degradation tree."""
        section = self._section("tree")
        tensors = self.tensors("tree.safetensors")
        try:
            levels = len(section["names"])
            tree = DegradationTree(
                tuple(tensors[f"centers.{i}"] for i in range(levels)),
                tuple(tensors[f"parents.{i}"] for i in range(levels)),
                tuple({_tasks(key): int(n) for key, n in sets.items()} for sets in section["task_sets"]),
                tuple(tuple(map(str, names)) for names in section["names"]),
            )
            if f"centers.{levels}" in tensors:
                raise ValueError("more levels than names")
            tree.check()
            return tree
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{self.folder}/config.json: the tree is damaged ({error})") from None

    def extractor(self) -> Extractor:
        """D with its weights, in evaluation mode."""
        section = dict(self._section("extractor"))
        captions = section.pop("captions", [])
        config = from_dict(ExtractorConfig, section, "extractor")
        if not isinstance(captions, list):
            raise ValueError(f"{self.folder}/config.json: extractor.captions should be a list")
        config.check()
        extractor = self._affordable(lambda: Extractor(config, tuple(map(str, captions))), "extractor")
        return self._filled(extractor, "extractor.safetensors")

    def router(self, tree: DegradationTree) -> Router:
        """Heads and routers with their weights, in evaluation mode."""
        config = from_dict(RoutersConfig, self._section("routers"), "routers")
        config.check()
        dim, table = tree.centers[-1].shape[1], tree.expert_table
        router = self._affordable(lambda: Router(dim, table, config), "routers")
        return self._filled(router, "router.safetensors")

    def expert(self, name: str) -> Network:
        """The network of expert "level-index" with its weights, in evaluation mode."""
        return self._filled(build_network(self.shape(name)), f"experts/{name}.safetensors")

    def shape(self, name: str) -> NetworkConfig:
        """The shape of expert "level-index"."""
        shapes = self._section("experts")
        if name not in shapes:
            raise ValueError(f"{self.folder} has no expert {name}: it has {', '.join(shapes) or 'none'}")
        return from_dict(NetworkConfig, shapes[name], f"experts.{name}")

    def map(self) -> DegradationMap:
        """The map of training DRs."""
        data = self.read("map.npz")
        try:
            return DegradationMap.from_bytes(data)
        except ValueError as error:
            raise ValueError(f"{self.folder / 'map.npz'}: {error}") from None

    def metrics(self) -> dict[str, Any]:
        """What `python -m training evaluate` measured; empty before that.

        Not hashed: it is added to later.
        """
        path = self.folder / "metrics.json"
        try:
            return json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {str(error):.100}") from None

    def _section(self, name: str) -> dict[str, Any]:
        section = self.config.get(name, {})
        if not isinstance(section, dict):
            raise ValueError(f"{self.folder}/config.json: {name} should be an object")
        return section

    def _affordable(self, build: Callable[[], nn.Module], section: str) -> nn.Module:
        """`build()`, once its size is known to be sensible: a config may come from a stranger."""
        with torch.device("meta"):  # shapes without memory
            module = build()
            count = sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
        if count > MAX_PARAMETERS:
            raise ValueError(
                f"{self.folder}/config.json: the {section} would have {count / 1e6:.0f} million parameters, "
                f"at most {MAX_PARAMETERS / 1e6:.0f} million are allowed"
            )
        return build()

    def _filled(self, module: nn.Module, name: str) -> Any:  # noqa: ANN401 - the module's own type
        try:
            module.load_state_dict(self.tensors(name), strict=True)
        except RuntimeError as error:
            raise ValueError(
                f"{self.folder / name} does not fit config.json: {' '.join(str(error).split())[:160]}"
            ) from None
        return module.eval().requires_grad_(False)


def _tasks(key: str) -> frozenset[Task]:
    return frozenset(Task(name) for name in key.split("+") if name)


def add_part(folder: Path, name: str, data: bytes, **sections: Any) -> None:  # noqa: ANN401 - JSON data
    """Write one file of a checkpoint and record its hash and config sections; starts the checkpoint where
    there is none.

    Every write is atomic; between the two the file's hash does not match, and a reader says so.
    """
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / name, data)
    add_to_config(folder, files={name: sha256(data)}, **sections)


def add_to_config(folder: Path, **sections: Any) -> None:  # noqa: ANN401 - JSON data
    """Set sections of config.json; a dict is merged, two levels deep, with what stands there."""
    exists = (folder / "config.json").is_file()
    config: dict[str, Any] = Checkpoint(folder).config if exists else {"format": FORMAT}
    for key, value in sections.items():
        if isinstance(value, dict):
            old = config.get(key, {})
            value = {**old, **{name: _merged(old.get(name), entry) for name, entry in value.items()}}
        config[key] = value
    text = json.dumps(config, indent=1)
    atomic_write(folder / "config.json", text.encode())


def _merged(old: Any, new: Any) -> Any:  # noqa: ANN401 - JSON data
    return {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new


def half(module: nn.Module) -> bytes:
    """A module's weights as safetensors bytes, floating ones in half precision."""
    state = {key: value.detach().cpu() for key, value in module.state_dict().items()}
    return save({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()})


def add_extractor(folder: Path, extractor: Extractor, training: dict[str, Any]) -> None:
    section = {**to_dict(extractor.config), "captions": list(extractor.captions)}
    add_part(
        folder, "extractor.safetensors", half(extractor), extractor=section, training={"extractor": training}
    )


def add_tree(folder: Path, tree: DegradationTree, training: dict[str, Any]) -> None:
    tensors = {f"centers.{i}": c.float().contiguous() for i, c in enumerate(tree.centers)}
    tensors |= {f"parents.{i}": p.contiguous() for i, p in enumerate(tree.parents)}
    sets = [{"+".join(sorted(tasks)): n for tasks, n in leaf.items()} for leaf in tree.task_sets]
    section = {"names": [list(names) for names in tree.names], "task_sets": sets}
    add_part(folder, "tree.safetensors", save(tensors), tree=section, training={"tree": training})


def add_expert(
    folder: Path, name: str, shape: NetworkConfig, network: nn.Module, training: dict[str, Any]
) -> None:
    file = f"experts/{name}.safetensors"
    add_part(
        folder, file, half(network), experts={name: to_dict(shape)}, training={"experts": {name: training}}
    )


def add_router(folder: Path, router: Router, config: RoutersConfig, training: dict[str, Any]) -> None:
    add_part(
        folder, "router.safetensors", half(router), routers=to_dict(config), training={"routers": training}
    )


def add_map(folder: Path, map_: DegradationMap, training: dict[str, Any]) -> None:
    add_part(folder, "map.npz", map_.to_bytes(), training={"map": training})


def verify(folder: str | Path) -> list[str]:
    """Check every file's hash and shape and run a forward pass; the names of the checked parts.

    Raises ValueError.
    """
    checkpoint = Checkpoint(folder)
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
