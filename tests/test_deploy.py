"""Two replicas behind one address, started and asked as in production, with Ray on this machine alone."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.replicas import running
from unirestorer import UniRestorer
from unirestorer.imaging import encode_image, load_image
from unirestorer.types import Task

pytest.importorskip("ray")


def ask(address: str, body: bytes | None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=60) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {}, error.read()


@pytest.fixture(scope="module")
def address(tiny_checkpoint: Path) -> Iterator[str]:
    with running(str(tiny_checkpoint), replicas=2, threads=1) as found:
        yield found


@pytest.mark.timeout(240)
def test_replicas_answer_as_the_library_does(address: str, tiny_checkpoint: Path) -> None:
    x = torch.rand(1, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    photo = encode_image(x, "photo.png")
    model = UniRestorer.from_pretrained(tiny_checkpoint, device="cpu")
    wanted = {
        "/restore": model.restore(photo),
        "/restore?tasks=derain": model.restore(photo, tasks={Task.DERAIN}),
        "/restore?expert=1-2": model.restore(photo, expert="1-2"),
    }
    replicas = set()
    with ThreadPoolExecutor(4) as pool:
        for path, result in wanted.items():
            answers = list(pool.map(ask, [address + path] * 4, [photo] * 4))
            for status, headers, body in answers:
                assert status == 200 and headers["content-type"] == "image/png"
                assert headers["x-expert"] == model.tree.expert_names[int(result.decision.route.expert)]
                assert (load_image(body) - result.image).abs().max() < 1.5 / 255
                replicas.add(headers["x-replica"])
    assert len(replicas) == 2, "one replica did all the work"
    status, _, body = ask(f"{address}/inspect", photo)
    assert status == 200 and json.loads(body)["checkpoint"] == tiny_checkpoint.name
    assert ask(f"{address}/-/healthz", None)[0] == 200


def test_mistakes_are_told_in_a_sentence(address: str) -> None:
    photo = encode_image(torch.rand(1, 3, 40, 40), "photo.png")
    for path, body, status, words in (
        ("/restore", b"nonsense", 400, "no readable image"),
        ("/restore", b"", 400, "an empty file"),
        ("/restore?tasks=derain,fog", photo, 400, "unknown task 'fog'"),
        ("/restore?expert=9-9", photo, 400, "9-9"),
        ("/restore?size=3", photo, 400, "unknown parameter 'size'"),
        ("/restored", photo, 404, "/restore or /inspect"),
        ("/restore", None, 405, "expected POST"),
    ):
        got, _, answer = ask(address + path, body)
        text = json.loads(answer)["error"]
        assert got == status and words in text and "\n" not in text, (path, got, text)


def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unirestorer.deploy.ray_serve import main

    missing = str(tmp_path / "none")
    for words, reason in (
        (["--checkpoint", missing], f"no checkpoint {missing!r}"),
        (["--replicas", "0"], "--replicas: Input should be greater than or equal to 1"),
        (["--device", "tpu"], "--device: Input should be 'auto', 'cpu' or 'cuda'"),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(f"ray_serve: {reason}")


def test_a_cluster_reads_the_options_as_the_program_does(tiny_checkpoint: Path) -> None:
    """The number of replicas had two defaults: two from the program, one from `serve run`."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    from unirestorer.deploy.ray_serve import Options, engine

    words = {"checkpoint": str(tiny_checkpoint), "threads": "3", "gpus": "0.25"}  # name=value of `serve run`
    deployment = build(engine, words)._bound_deployment
    assert deployment.num_replicas == Options().replicas == 2
    assert deployment.init_args == (str(tiny_checkpoint), "auto", 3)
    assert deployment.ray_actor_options == {"num_cpus": 3, "num_gpus": 0.25}
    with pytest.raises(ValueError, match="replica"):
        build(engine, {**words, "replica": "8"})
