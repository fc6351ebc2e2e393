"""What a visitor of the repository relies on: README names every source file, the top level stays small."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from unirestorer.checkpoint import Checkpoint, shipped

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    *("app.py", "unirestorer", "training", "assets", "checkpoints", "tests", "requirements.txt", "README.md"),
    *("pyproject.toml", "Makefile", ".ci", "requirements-dev.txt", "LICENSE", ".gitignore", ".gitattributes"),
    *("Dockerfile", ".dockerignore"),
}
NOT_OURS = {".git", ".venv", ".pytest_cache", ".ruff_cache", ".gradio", "__pycache__", "out", "shared"}
LARGEST_BYTES = 4 * 2**20
# Package indexes by name; where packages come from is the reader's setting, not ours.
REGISTRY = re.compile(
    r"\b(pypi|pythonhosted|npmjs|crates)\.(org|com|io)\b|\b(deb|security|ftp)\.debian\.|\bdownload\.pytorch\."
    r"|--(extra-)?index-url\b|--find-links\b"
)


def our_files() -> list[Path]:
    """Tracked files relative to the root; in a copy without git, every file that is not a cache."""
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if (ROOT / ".git").exists() and git.returncode == 0 and git.stdout:
        tracked = [Path(name) for name in git.stdout.split("\0") if name]
        return [path for path in tracked if (ROOT / path).is_file()]
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return sorted(path for path in found if not NOT_OURS & set(path.parts) and path.suffix != ".pyc")


def test_readme_lists_every_source_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sources = [
        path
        for path in our_files()
        if path.suffix == ".py"
        and path.parts[0] in {"app.py", "unirestorer", "training", "assets"}
        and (ROOT / path).stat().st_size  # an empty __init__.py has nothing to say
    ]
    assert sources
    missing = []
    for name, count in Counter(path.name for path in sources).items():
        # Two files of one name must be named twice.
        if len(re.findall(rf"(?<![\w.-]){re.escape(name)}(?!\w)", readme)) < count:
            missing += [str(path) for path in sources if path.name == name]
    assert not missing, f"README.md does not list {', '.join(missing)}"


def test_top_level_holds_only_the_fixed_names() -> None:
    extra = {path.parts[0] for path in our_files()} - TOP_LEVEL
    assert not extra, f"move these into a folder: {', '.join(sorted(extra))}"


def test_no_file_names_a_package_registry() -> None:
    found = []
    for path in our_files():
        data = (ROOT / path).read_bytes()
        if path == Path("tests/test_repository.py") or b"\0" in data:
            continue
        hits = REGISTRY.finditer(data.decode("utf-8", errors="replace"))
        found += [f"{path}: {hit.group()}" for hit in hits]
    assert not found, "\n".join(found)


def test_nothing_but_checkpoints_is_large() -> None:
    large = [path for path in our_files() if path.parts[0] != "checkpoints"]
    large = [str(path) for path in large if (ROOT / path).stat().st_size > LARGEST_BYTES]
    assert not large, f"over {LARGEST_BYTES} bytes: {', '.join(large)}"


@pytest.mark.parametrize("name", shipped())
def test_readme_shows_what_was_measured(name: str) -> None:
    """The tables between README's marks are those of the committed metrics."""
    import json

    from training.measure.tables import insert, results

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((ROOT / f"checkpoints/{name}/metrics.json").read_text(encoding="utf-8"))
    assert results(metrics).strip()
    assert insert(readme, name, results(metrics)) == readme


@pytest.mark.parametrize("name", shipped())
def test_the_shipped_checkpoint_is_whole(name: str) -> None:
    checkpoint = Checkpoint(ROOT / "checkpoints" / name)
    for name in checkpoint.config["files"]:
        checkpoint.read(name)
    assert all(checkpoint.has(f"experts/{name}.safetensors") for name in checkpoint.tree().expert_names)
