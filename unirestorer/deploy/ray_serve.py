"""Replicas of the model behind one address, on one machine or on a cluster, with Ray Serve.

    pip install "ray[serve]"
    python -m unirestorer.deploy.ray_serve --checkpoint single --replicas 2
    curl --data-binary @photo.jpg "http://127.0.0.1:8000/restore?tasks=derain" -o restored.png

On a cluster that runs already: `serve run unirestorer.deploy.ray_serve:engine checkpoint=single replicas=8`.
A replica holds a model of its own and works on one photo at a time; others wait, and past `queue` of them a
client gets 503. Ray's own `/-/healthz` answers while the model works.
"""

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Literal
from urllib.parse import quote

# Read when ray is imported and started.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: anything else on the machine goes first

import ray
import torch
from pydantic import BaseModel, Field, ValidationError
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from unirestorer.checkpoint import find_checkpoint
from unirestorer.imaging import encode_image, load_image
from unirestorer.pipeline import UniRestorer
from unirestorer.report import describe
from unirestorer.types import named_tasks

MAX_BYTES = 64 * 2**20  # of a photo's file
NAME = "unirestorer"


class Options(BaseModel, extra="forbid"):
    """What `serve run` takes as name=value, and this program as --name value."""

    checkpoint: str = Field("single", description="folder, name in checkpoints/ or hub id")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto, cpu or cuda")
    replicas: int = Field(2, ge=1, description="models that work side by side")
    threads: int = Field(1, ge=1, description="CPU threads of each")
    queue: int = Field(32, ge=1, description="photos that may wait")
    cpus: float | None = Field(None, ge=0, description="cores that Ray reserves for each; None: its threads")
    gpus: float = Field(0.0, ge=0, description="share of a GPU that each reserves: 0.25 puts four on one")

    @property
    def cores(self) -> float:
        """Cores that Ray reserves for a replica."""
        return self.threads if self.cpus is None else self.cpus


class Engine:
    """One replica. POST /restore gives a PNG, POST /inspect the routing decision as JSON.

    The body is a photo's file; the query may name `tasks` (commas between them) and, to restore, an `expert`.
    Every mistake is answered by one sentence in {"error": …} with status 400, 404, 405 or 413.
    """

    def __init__(self, checkpoint: str, device: str = "auto", threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.model = UniRestorer.from_pretrained(checkpoint, device=device)

    async def __call__(self, request: Request) -> Response:
        """Answer one request; the model works in a thread, so that health checks are answered meanwhile."""
        verb = request.url.path.strip("/")
        if verb not in ("restore", "inspect"):
            return _sorry(404, f"no such path: got /{verb[:40]}, expected /restore or /inspect")
        if request.method != "POST":
            return _sorry(405, f"got {request.method}, expected POST with a photo's file as the body")
        photo = bytearray()
        async for part in request.stream():
            photo += part
            if len(photo) > MAX_BYTES:
                return _sorry(413, f"the photo's file is over {MAX_BYTES // 2**20} MB: send a smaller one")
        try:
            return await asyncio.to_thread(self.answer, verb, bytes(photo), dict(request.query_params))
        except ValueError as error:
            return _sorry(400, str(error))

    def answer(self, verb: str, photo: bytes, query: dict[str, str]) -> Response:
        """The response to a good request. Raises ValueError with the sentence for a bad one."""
        unknown = sorted(query.keys() - {"tasks", "expert"})
        if unknown:
            raise ValueError(f"unknown parameter {unknown[0][:40]!r}: expected tasks or expert")
        names = [name.strip() for name in query.get("tasks", "").split(",")]
        tasks = named_tasks(filter(None, names)) or None
        x = load_image(photo)
        if verb == "inspect":
            return JSONResponse(describe(self.model, self.model.inspect(x, tasks)))
        result = self.model(x, tasks=tasks, expert=query.get("expert") or None)
        expert = int(result.decision.route.expert[0])
        headers = {
            "X-Expert": self.model.tree.expert_names[expert],
            "X-Expert-Name": quote(self.model.tree.words(expert), safe=" ,+"),
            "X-Seconds": f"{sum(result.decision.seconds.values()):.3f}",
            "X-Replica": serve.get_replica_context().replica_id.unique_id,
        }
        return Response(encode_image(result.image, "restored.png"), 200, headers, "image/png")


def _sorry(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(text.split())}, status)


def engine(options: Options) -> serve.Application:
    """What Ray Serve runs. Raises ValueError for a checkpoint that is not there."""
    deployment = serve.deployment(
        name=NAME,
        num_replicas=options.replicas,
        max_ongoing_requests=1,
        max_queued_requests=options.queue,
        graceful_shutdown_timeout_s=30.0,  # for photos that are being restored
        ray_actor_options={"num_cpus": options.cores, "num_gpus": options.gpus},
    )(Engine)
    checkpoint = str(find_checkpoint(options.checkpoint))  # downloaded here, once, if it is a hub id
    return deployment.bind(checkpoint, options.device, options.threads)


def start(options: Options, port: int, host: str = "127.0.0.1") -> None:
    """Start Ray on this machine alone, and the replicas; returns when all of them are ready.

    Raises ValueError when the checkpoint or the port cannot be had.
    """
    application = engine(options)
    ray.init(
        # A core more than the replicas take, in Ray's book-keeping alone: its own processes want one too.
        num_cpus=max(os.cpu_count() or 1, int(options.replicas * options.cores + 1)),
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(application, name=NAME, route_prefix="/")
    except (RuntimeError, OSError) as error:
        stop()
        raise ValueError(f"the replicas did not start: {' '.join(str(error).split())[:300]}") from None


def stop() -> None:
    """Let running photos finish, then end the replicas and Ray."""
    serve.shutdown()
    ray.shutdown()


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; what keeps it from starting ends in one line and code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m unirestorer.deploy.ray_serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, field in Options.model_fields.items():
        text = f"{field.description} (default: {field.default})"
        parser.add_argument(f"--{name}", default=field.default, help=text)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = vars(parser.parse_args(words))
    host, port = args.pop("host"), args.pop("port")
    try:
        options = Options(**args)
        start(options, port, host)
    except ValueError as error:
        rows = error.errors() if isinstance(error, ValidationError) else []
        reason = "; ".join(f"--{row['loc'][0]}: {row['msg']}" for row in rows) or str(error)
        sys.stderr.write(f"ray_serve: {reason}\n")
        return 2
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # only now: to start Ray sets handlers of its own
        signal.signal(number, lambda *_: ended.set())
    sys.stdout.write(f"{options.replicas} replicas of {options.checkpoint} on http://{host}:{port}\n")
    sys.stdout.flush()
    ended.wait()
    stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
