"""Two pages behind nginx, set up as `unirestorer/deploy/README.md` says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import torch
from gradio_client import Client, handle_file

from unirestorer.imaging import save_image

ROOT = Path(__file__).parent.parent
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PATIENCE = 90  # seconds for a page to start

pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx: apt-get install nginx")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in taken:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in taken]


def documented(front: int, pages: list[int], folder: Path) -> str:
    """The README's nginx block as a whole configuration, with these ports and the page's in a header."""
    text = (ROOT / "unirestorer/deploy/README.md").read_text()
    (block,) = re.findall(r"```\n(upstream .*?)```", text, re.DOTALL)
    for place, port in zip(("10.0.0.1:7860", "10.0.0.2:7860"), pages, strict=True):
        assert place in block
        block = block.replace(place, f"127.0.0.1:{port}")
    block = block.replace(
        "server {", f"server {{ listen 127.0.0.1:{front}; add_header X-Page $upstream_addr;"
    )
    temporary = "".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "" if os.geteuid() else "user root; "  # else its workers may not use the test's folder
    return (
        f"{user}daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{block} }}\n"
    )


@pytest.fixture(scope="module")
def address(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    front, *pages = free_ports(3)
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "nginx.conf").write_text(documented(front, pages, folder))
    with ExitStack() as running, (folder / "log").open("wb") as log:

        def start(command: list[str], **settings: str) -> None:
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=log, stderr=log)
            running.callback(process.wait, 30)
            running.callback(process.terminate)

        start([str(NGINX), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"])
        for port in pages:
            start(
                [sys.executable, "app.py"],
                UNIRESTORER_CHECKPOINT=str(tiny_checkpoint),
                UNIRESTORER_DEVICE="cpu",
                GRADIO_SERVER_PORT=str(port),
                GRADIO_TEMP_DIR=str(folder / str(port)),
                FORWARDED_ALLOW_IPS="127.0.0.1",
            )
        for port in (*pages, front):
            wait_for(f"http://127.0.0.1:{port}/healthz")
        yield f"http://127.0.0.1:{front}"


def wait_for(address: str) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            httpx.get(address, timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            assert time.monotonic() < end, f"{address} does not answer"
            time.sleep(0.2)


@pytest.mark.timeout(240)
def test_each_visitor_stays_with_one_page(address: str) -> None:
    page_of = {}
    for visitor in (f"127.{number}.0.1" for number in range(8)):
        with httpx.Client(transport=httpx.HTTPTransport(local_address=visitor)) as client:
            pages = {client.get(f"{address}/healthz").headers["x-page"] for _ in range(3)}
        assert len(pages) == 1, (visitor, pages)
        page_of[visitor] = pages.pop()
    assert len(set(page_of.values())) == 2, "one page got all visitors"


def test_photos_and_results_pass_the_proxy(address: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    save_image(torch.rand(1, 3, 60, 80, generator=torch.Generator().manual_seed(0)), photo)
    client = Client(address, verbose=False)
    restored, report = client.predict(handle_file(str(photo)), [], "", api_name="/restore")
    assert Path(restored).is_file() and report["expert_name"]
