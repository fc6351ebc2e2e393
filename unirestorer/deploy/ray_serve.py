"""Replicas of the model behind one address, on one machine or on a cluster, with Ray Serve.

    pip install "ray[serve]"
    python -m unirestorer.deploy.ray_serve --checkpoint single --replicas 2
    curl --data-binary @photo.jpg "http://127.0.0.1:8000/restore?tasks=derain" -o restored.png

On a cluster that runs already: `serve run unirestorer.deploy.ray_serve:engine checkpoint=single replicas=8`.
A replica holds a model of its own and works on one photo at a time; others wait, and past `queue` of them a
client gets 503. Ray's own `/-/healthz` answers while the model works.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

# Read when ray is imported and started.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: anything else on the machine goes first

import ray
import torch
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.responses import JSONResponse, Response

from unirestorer.checkpoint import find_checkpoint
from unirestorer.imaging import encode_image, load_image
from unirestorer.pipeline import UniRestorer
from unirestorer.report import describe
from unirestorer.types import Restoration, named_tasks

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.requests import Request

MAX_BYTES = 64 * 2**20  # of a photo's file
STOP_SECONDS = 30.0  # that running photos get when a replica is told to stop
NAME = "unirestorer"


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
                return _sorry(
                    413, f"the photo's file is larger than {MAX_BYTES // 2**20} MB: send a smaller one"
                )
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
        return Response(encode_image(result.image, "restored.png"), 200, self._headers(result), "image/png")

    def _headers(self, result: Restoration) -> dict[str, str]:
        expert = int(result.decision.route.expert[0])
        return {
            "X-Expert": self.model.tree.expert_names[expert],
            "X-Expert-Name": quote(self.model.tree.words(expert), safe=" ,+"),
            "X-Seconds": f"{sum(result.decision.seconds.values()):.3f}",
            "X-Replica": serve.get_replica_context().replica_id.unique_id,
        }


def _sorry(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(text.split())}, status)


def engine(options: dict[str, Any]) -> Application:
    """What Ray Serve runs: `checkpoint`, and if wished `device`, `replicas`, `threads`, `queue`, `cpus`
    (cores that Ray reserves per replica) and `gpus` (0.25 puts four replicas on one).

    Raises ValueError for a checkpoint that is not there.
    """
    threads = int(options.get("threads", 1))
    resources = {"num_cpus": float(options.get("cpus", threads)), "num_gpus": float(options.get("gpus", 0))}
    deployment = serve.deployment(
        name=NAME,
        num_replicas=int(options.get("replicas", 1)),
        max_ongoing_requests=1,
        max_queued_requests=int(options.get("queue", 32)),
        graceful_shutdown_timeout_s=STOP_SECONDS,
        ray_actor_options=resources,
    )(Engine)
    checkpoint = str(find_checkpoint(options["checkpoint"]))  # downloaded here, once, if it is a hub id
    return deployment.bind(checkpoint, str(options.get("device", "auto")), threads)


def start(options: dict[str, Any], port: int, host: str = "127.0.0.1") -> None:
    """Start Ray on this machine alone, and the replicas; returns when all of them are ready.

    Raises ValueError when the checkpoint or the port cannot be had.
    """
    wanted = engine(options)
    cores = int(options.get("replicas", 1)) * float(options.get("cpus", options.get("threads", 1)))
    ray.init(
        # A core more than the replicas take, in Ray's book-keeping alone: its own processes want one too.
        num_cpus=max(os.cpu_count() or 1, int(cores + 1)),
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        serve.start(http_options=HTTPOptions(host=host, port=port))
        serve.run(wanted, name=NAME, route_prefix="/")
    except (RuntimeError, OSError) as error:
        stop()
        raise ValueError(f"the replicas did not start: {' '.join(str(error).split())[:300]}") from None


def stop() -> None:
    """Let running photos finish, then end the replicas and Ray."""
    serve.shutdown()
    ray.shutdown()


def main(words: Iterable[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; what keeps it from starting ends in one line and code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m unirestorer.deploy.ray_serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default="single", help="folder, name in checkpoints/ or hub id")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--replicas", type=int, default=2, help="models that work side by side (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (default 1)")
    parser.add_argument("--queue", type=int, default=32, help="photos that may wait (default 32)")
    parser.add_argument("--gpus", type=float, default=0.0, help="share of a GPU that each reserves")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = vars(parser.parse_args(list(words) if words is not None else None))
    host, port = args.pop("host"), args.pop("port")
    if min(args["replicas"], args["threads"], args["queue"]) < 1:
        sys.stderr.write("ray_serve: --replicas, --threads and --queue are whole numbers from 1\n")
        return 2
    try:
        start(args, port, host)
    except ValueError as error:
        sys.stderr.write(f"ray_serve: {error}\n")
        return 2
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # only now: to start Ray sets handlers of its own
        signal.signal(number, lambda *_: ended.set())
    sys.stdout.write(
        f"{args['replicas']} replicas of {Path(args['checkpoint']).name} on http://{host}:{port}\n"
    )
    sys.stdout.flush()
    ended.wait()
    stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
