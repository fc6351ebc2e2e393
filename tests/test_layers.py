"""The import direction of the design: a module imports only from its own layer or from layers before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"types", "config", "files", "journal"},
    {"imaging", "metrics"},
    {"degradation"},
    {"networks"},
    {"extractor", "tree", "map"},
    {"experts"},
    {"routing"},
    {"checkpoint"},
    {"pipeline"},
    {"report"},
    {"batch"},
    {"__init__"},  # the public names: importing them from a layer below would close a cycle
    {"cli", "__main__", "demo", "deploy"},
]
LAYER = {name: number for number, layer in enumerate(LAYERS) for name in layer}
ONLY_IN = {  # package -> the places that may import it
    "gradio": ("unirestorer/demo/", "app.py"),
    "sklearn": ("training/",),
    "umap": ("training/",),
    "ray": ("unirestorer/deploy/",),
    "training": ("training/", "assets/"),
}


def imports(path: str, source: str) -> set[str]:
    """Names that `path` imports: `from a import b` and, inside a, `from . import b` give a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(Path(path).parts[: -node.level]) if node.level else []
            base += [node.module] if node.module else []
            names.update(".".join([*base, alias.name]) for alias in node.names)
    return names


def violations(path: str, source: str) -> list[str]:
    """One line per import that the file at `path` (from the repository's root) should not have."""
    own = len(LAYERS)  # app.py, training and assets stand above the library
    if path.startswith("unirestorer/"):
        name = Path(path).parts[1].removesuffix(".py")
        if name not in LAYER:
            return [f"{path} is in no layer: add it to LAYERS"]
        own = LAYER[name]
    faults = []
    for name in sorted(imports(path, source)):
        package, module = (*name.split("."), "__init__")[:2]
        if not path.startswith(ONLY_IN.get(package, "")):
            faults.append(f"{path} imports {name}; only {' and '.join(ONLY_IN[package])} may")
        if package == "unirestorer" and LAYER.get(module, LAYER["__init__"]) > own:
            faults.append(f"{path} imports {name} from a layer above its own")
    return faults


def test_every_module_imports_downwards() -> None:
    paths = list(ROOT.glob("app.py"))
    for folder in ("unirestorer", "training", "assets"):
        paths += (ROOT / folder).rglob("*.py")
    assert paths
    faults = []
    for path in paths:
        faults += violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "source", "forbidden"),
    [
        ("unirestorer/tree.py", "from unirestorer.experts import ExpertBank", True),
        ("unirestorer/tree.py", "from unirestorer.types import Task", False),
        ("unirestorer/tree.py", "def f():\n    from unirestorer import experts", True),
        ("unirestorer/tree.py", "from unirestorer import Task", True),
        ("unirestorer/tree.py", "import unirestorer", True),
        ("unirestorer/tree.py", "from unirestorer.map import DegradationMap", False),
        ("unirestorer/map.py", "from unirestorer.experts import ExpertBank", True),
        ("unirestorer/pipeline.py", "from unirestorer.report import describe", True),
        ("unirestorer/report.py", "from unirestorer.pipeline import UniRestorer", False),
        ("unirestorer/report.py", "from unirestorer.cli import main", True),
        ("unirestorer/cli.py", "from unirestorer import UniRestorer", False),
        ("unirestorer/networks/nafnet.py", "from ..routing import Router", True),
        ("unirestorer/networks/nafnet.py", "from .blocks import Block\nfrom .. import imaging", False),
        ("unirestorer/networks/__init__.py", "from .nafnet import NAFNet", False),
        ("unirestorer/pipeline.py", "import gradio.themes", True),
        ("unirestorer/demo/page.py", "import gradio as gr", False),
        ("app.py", "import gradio as gr\nfrom unirestorer.demo import build", False),
        ("app.py", "from training.build.data import photos", True),
        ("unirestorer/demo/map.py", "import umap", True),
        ("training/fit_tree.py", "from sklearn.cluster import KMeans\nfrom unirestorer import tree", False),
        ("unirestorer/stray.py", "", True),
    ],
)
def test_checker_tells_right_from_wrong(path: str, source: str, forbidden: bool) -> None:
    assert bool(violations(path, source)) == forbidden


def test_pipeline_is_light_to_import() -> None:
    """Scripts must not pay for the page's and the training's packages."""
    code = (
        "import sys, unirestorer, unirestorer.pipeline;"
        "print(*({'gradio', 'sklearn', 'umap', 'plotly'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.split()
