"""What is uploaded where, and the container: by content, since neither a hub nor Docker is at hand."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.__main__ import main, parse
from training.publish import model_files, publish, space_files
from unirestorer.checkpoint import HUB_FILES

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


class Hub:
    """Stands in for HfApi and keeps what it is given."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.commits: dict[str, dict[str, bytes]] = {}

    def create_repo(
        self, name: str, *, repo_type: str, private: bool, exist_ok: bool, **options: Any
    ) -> None:
        assert exist_ok and options == ({"space_sdk": "gradio"} if repo_type == "space" else {})
        self.made.append((name, repo_type))

    def create_commit(self, name: str, operations: list, *, commit_message: str, repo_type: str) -> Any:
        self.commits[repo_type] = {
            each.path_in_repo: Path(each.path_or_fileobj).read_bytes() for each in operations
        }
        return SimpleNamespace(commit_url=f"hub/{name}")


def test_a_dry_run_lists_everything_and_uploads_nothing(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    arguments = ["--space", "a/page", "--model", "a/model", "--checkpoint", str(tiny_checkpoint), "--dry-run"]
    assert main(["publish", *arguments]) == 0
    out = capsys.readouterr().out
    assert "\n".join(publish(parse(["publish", *arguments]), hub)) + "\n" == out
    assert hub.made == [] and hub.commits == {}
    for name in (
        "app.py",
        "config.json",
        "experts/1-3.safetensors",
        "unirestorer/demo/page.css",
        "README.md",
    ):
        assert re.search(rf"^ *[\d,]+ {re.escape(name)}$", out, re.M), name
    assert "tests/" not in out and ".git" not in out and "__pycache__" not in out
    assert "files for the space a/page" in out and "files for the model a/model" in out


def test_what_is_listed_is_what_is_uploaded(tiny_checkpoint: Path) -> None:
    hub = Hub()
    arguments = ["--space", "a/page", "--model", "a/model", "--checkpoint", str(tiny_checkpoint)]
    assert publish(parse(["publish", *arguments]), hub) == ["hub/a/model", "hub/a/page"]
    assert hub.made == [("a/model", "model"), ("a/page", "space")]
    assert set(hub.commits["space"]) == {path.as_posix() for path in space_files(ROOT)}
    assert hub.commits["space"]["app.py"] == (ROOT / "app.py").read_bytes()
    assert set(hub.commits["model"]) == {path.as_posix() for path in model_files(tiny_checkpoint)}
    assert hub.commits["model"]["config.json"] == (tiny_checkpoint / "config.json").read_bytes()


def test_a_space_gets_all_that_the_page_needs() -> None:
    files = {path.as_posix() for path in space_files(ROOT)}
    assert {
        "app.py",
        "requirements.txt",
        "unirestorer/pipeline.py",
        "checkpoints/single/config.json",
    } <= files
    front = (ROOT / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert "app_file: app.py" in front and "sdk: gradio" in front


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name --space, --model or both"),
        (["--space", "nonsense"], "expected a repository user/name, got 'nonsense'"),
        (["--model", "a/b", "--checkpoint", "/nowhere/at/all"], "no checkpoint"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", *arguments]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and errors.count("\n") == 1


def test_a_damaged_checkpoint_is_never_uploaded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    with (folder / "experts/1-3.safetensors").open("r+b") as file:
        file.write(b"damage")
    hub = Hub()
    words = ["publish", "--model", "a/b", "--space", "a/c", "--checkpoint", str(folder)]
    with pytest.raises(ValueError, match=r"1-3\.safetensors is damaged"):
        publish(parse(words), hub)
    assert hub.made == []


def test_a_hub_that_fails_is_one_line(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    assert issubclass(HfHubHTTPError, OSError)
    hub = Hub()
    hub.create_repo = lambda *unused, **options: (_ for _ in ()).throw(OSError("403\nForbidden"))  # type: ignore[method-assign]
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert main(["publish", "--model", "a/b", "--checkpoint", str(tiny_checkpoint)]) == 2
    assert capsys.readouterr().err == "training: 403 Forbidden\n"


def test_the_hub_takes_what_from_pretrained_asks_for(tiny_checkpoint: Path) -> None:
    names = {path.as_posix() for path in model_files(tiny_checkpoint)}
    assert {"config.json", "tree.safetensors", "router.safetensors", "map.npz"} <= names
    assert all(any(Path(name).match(pattern) for pattern in HUB_FILES) for name in names)


# The container


def instructions(word: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{word} +(.*)$", joined, re.M)


def test_the_container_copies_what_there_is_and_all_that_is_needed() -> None:
    copied = [source for line in instructions("COPY") for source in line.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert {"app.py", "requirements.txt", "unirestorer", "assets", "checkpoints"} <= set(copied)
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert let_through == set(copied)


def test_the_container_runs_without_rights_and_writes_below_tmp_only() -> None:
    assert instructions("USER") == ["1000"]
    (line,) = instructions("ENV")
    settings = dict(part.split("=", 1) for part in shlex.split(line))
    assert settings["GRADIO_TEMP_DIR"].startswith("/tmp/") and settings["HF_HOME"].startswith("/tmp/")
    assert settings["PYTHONDONTWRITEBYTECODE"] == "1" and settings["GRADIO_SERVER_NAME"] == "0.0.0.0"
    assert DOCKERFILE.index("USER 1000") > DOCKERFILE.index("RUN pip") and "sudo" not in DOCKERFILE
    assert instructions("CMD")[-1] == '["python", "app.py"]' and instructions("STOPSIGNAL") == ["SIGTERM"]


def test_the_container_asks_for_its_health() -> None:
    (check,) = instructions("HEALTHCHECK")
    (port,) = instructions("EXPOSE")
    command = check.partition("CMD ")[2]
    code = re.fullmatch(r'\["python", "-c", "(.*)"\]', command.strip())
    assert code and f"127.0.0.1:{port}/healthz" in code[1] and f"GRADIO_SERVER_PORT={port}" in DOCKERFILE
    compile(code[1], "health", "exec")
