"""What a visitor of the repository relies on: README names every source file, the top level stays small."""

import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from training.__main__ import parse
from training.config import override, preset
from training.measure.tables import documents
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
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return sorted(path for path in paths if not NOT_OURS & set(path.parts) and path.suffix != ".pyc")


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
    addresses = []
    for path in our_files():
        data = (ROOT / path).read_bytes()
        if path == Path("tests/test_repository.py") or b"\0" in data:
            continue
        hits = REGISTRY.finditer(data.decode("utf-8", errors="replace"))
        addresses += [f"{path}: {hit.group()}" for hit in hits]
    assert not addresses, "\n".join(addresses)


def test_nothing_but_checkpoints_is_large() -> None:
    large = [path for path in our_files() if path.parts[0] != "checkpoints"]
    large = [str(path) for path in large if (ROOT / path).stat().st_size > LARGEST_BYTES]
    assert not large, f"over {LARGEST_BYTES} bytes: {', '.join(large)}"


def test_readme_and_cards_show_what_was_measured() -> None:
    """The tables between their marks are those of the committed metrics."""
    for path, text in documents().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: python -m training tables"
        assert "**At a glance**" in text
        assert ("<details>" in text) == (path.parent != ROOT), "README is short, the cards hold the rest"


def test_readme_reads_in_one_go() -> None:
    """It had 758 lines, most of them tables."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("path", ["README.md", *(f"checkpoints/{name}/README.md" for name in shipped())])
def test_training_commands_in_documents_are_understood(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^python -m training (.+?)(?: {2,}#.*)?$", text, re.M)
    assert commands and "python -m training." not in text
    for command in commands:
        arguments = parse(shlex.split(command))
        if "preset" in arguments:
            override(preset(arguments.preset, arguments.mode), arguments.set)


@pytest.mark.parametrize("name", shipped())
def test_the_shipped_checkpoint_is_whole(name: str) -> None:
    checkpoint = Checkpoint(ROOT / "checkpoints" / name)
    for name in checkpoint.config["files"]:
        checkpoint.read(name)
    assert all(checkpoint.has(f"experts/{name}.safetensors") for name in checkpoint.tree().expert_names)
