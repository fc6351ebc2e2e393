"""Upload the repository as a Hugging Face Space and its checkpoint as a model, with huggingface_hub.

    python -m training publish --space user/unirestorer --model user/unirestorer-single --dry-run
    python -m training publish --space user/unirestorer --model user/unirestorer-single

The hub client's own login is used (`hf auth login` or HF_TOKEN). Without --dry-run each repository is made if
need be and gets one commit; what is there and not here stays.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from unirestorer.checkpoint import HUB_FILES, Checkpoint, find_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SPACE_FILES = ("app.py", "requirements.txt", "README.md", "LICENSE", "pyproject.toml", "Dockerfile")
SPACE_FOLDERS = ("unirestorer", "training", "assets", "checkpoints")
NEEDED = ("app.py", "requirements.txt", "README.md")
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def space_files(root: Path) -> list[Path]:
    """What a Space gets, relative to `root`: tracked files, or, without git, all but hidden ones and caches.

    Raises ValueError when something is missing that a Space cannot do without.
    """
    git = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if git.returncode == 0 and git.stdout:
        paths = [Path(name) for name in git.stdout.split("\0") if name]
    else:
        paths = [path.relative_to(root) for path in root.rglob("*")]
    chosen = [
        path
        for path in paths
        if (path.parts[0] in SPACE_FOLDERS or str(path) in SPACE_FILES)
        and not any(part[0] == "." or part == "__pycache__" for part in path.parts)
        and (root / path).is_file()
    ]
    if missing := [name for name in NEEDED if Path(name) not in chosen]:
        raise ValueError(f"{root} is no repository to publish: it lacks {', '.join(missing)}")
    return sorted(chosen)


def model_files(folder: Path) -> list[Path]:
    """What a model repository gets, relative to the checkpoint's folder, after each file's hash was checked.

    Raises ValueError for a damaged checkpoint.
    """
    checkpoint = Checkpoint(folder)
    for name in checkpoint.config.get("files", {}):
        checkpoint.read(name)
    paths = (path.relative_to(folder) for path in (*folder.glob("*"), *folder.glob("experts/*")))  # no work/
    return sorted(path for path in paths if any(fnmatch.fnmatch(path.as_posix(), p) for p in HUB_FILES))


def upload(api: Any, name: str, kind: str, root: Path, files: list[Path], private: bool) -> str:  # noqa: ANN401
    """Make the repository if need be, commit the files; the commit's address. `api` is an HfApi."""
    from huggingface_hub import CommitOperationAdd

    options = {"space_sdk": "gradio"} if kind == "space" else {}
    api.create_repo(name, repo_type=kind, private=private, exist_ok=True, **options)
    operations = [CommitOperationAdd(path.as_posix(), root / path) for path in files]
    commit = api.create_commit(name, operations, commit_message="Upload UniRestorer", repo_type=kind)
    return str(commit.commit_url)


def listing(name: str, kind: str, root: Path, files: list[Path]) -> str:
    """What would be uploaded, a file a line with its size, and the sum."""
    sizes = [(root / path).stat().st_size for path in files]
    lines = [f"{size:>12,} {path.as_posix()}" for path, size in zip(files, sizes, strict=True)]
    return "\n".join([*lines, f"{sum(sizes):>12,} bytes in {len(files)} files for the {kind} {name}"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `publish` on a command line."""
    parser.add_argument("--space", metavar="USER/NAME", help="the Space that gets the page")
    parser.add_argument("--model", metavar="USER/NAME", help="the model repository that gets the checkpoint")
    parser.add_argument("--checkpoint", default="single", help="which one (default: %(default)s)")
    parser.add_argument("--private", action="store_true", help="for what does not exist yet")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, without network")


def run(arguments: argparse.Namespace) -> None:
    """Upload, or list, and print. Raises ValueError for bad input, and the hub client's OSErrors."""
    for line in publish(arguments):
        sys.stdout.write(f"{line}\n")


def publish(arguments: argparse.Namespace, api: Any = None) -> list[str]:  # noqa: ANN401 - an HfApi, or a test's
    """Upload, or list, what the arguments name; lines to print. All is checked before the first upload.

    Raises ValueError.
    """
    uploads: list[tuple[str, str, Path, list[Path]]] = []
    for name in filter(None, (arguments.space, arguments.model)):
        if not REPOSITORY.fullmatch(name):
            raise ValueError(f"expected a repository user/name, got {name!r:.100}")
    if arguments.model:
        folder = find_checkpoint(arguments.checkpoint)
        uploads.append((arguments.model, "model", folder, model_files(folder)))
    if arguments.space:
        uploads.append((arguments.space, "space", ROOT, space_files(ROOT)))
    if not uploads:
        raise ValueError("nothing to publish: name --space, --model or both")
    if arguments.dry_run:
        return [listing(*each) for each in uploads]
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    return [upload(api, *each, arguments.private) for each in uploads]
