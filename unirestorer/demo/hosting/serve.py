"""How the page is served to many: who may queue, what they are told, health, files, and a stop that loses
no running job.

Everything here goes around a finished page (`build_page`), so that the page itself knows nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import Request
from gradio.data_classes import PredictBodyInternal
from gradio.processing_utils import check_all_files_in_cache
from gradio.queueing import Event
from gradio.server_messages import ProcessCompletedMessage
from gradio_client.exceptions import AppError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unirestorer import __version__
from unirestorer.demo.hosting.host import Limits, choose_port, free_bytes, lent_gpu, sweep
from unirestorer.demo.hosting.jobs import Watch, guard, places
from unirestorer.demo.page import MODEL_QUEUE, launch_options
from unirestorer.demo.view import words
from unirestorer.pipeline import UniRestorer

SWEEP_SECONDS = 30
LEAST_FREE_BYTES = 128 * 2**20
BODY_BYTES = 96 * 2**20  # of a request other than an upload: a photo of 64 MB in base64
DELIVERY_SECONDS = 1.5  # for the browser to fetch what the last job made


class Desk:
    """The reception of one page: it lets jobs into the queue, answers /healthz, and closes."""

    def __init__(self, page: gr.Blocks, watch: Watch, model_name: str, folder: Path) -> None:
        self.page = page
        self.limits = watch.limits
        self.watch = watch
        self.model_name = model_name
        self.folder = folder
        self.stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue = page._queue
        self._push = self._queue.push
        self._queue.max_size = None  # `_refusal` decides, and says more than Gradio would
        self._queue.push = self.push  # type: ignore[method-assign]
        self._preprocess = page.preprocess_data
        page.preprocess_data = self.preprocess  # type: ignore[method-assign]
        page.api_open = False  # all jobs through the queue
        watch.is_wanted = self.is_wanted
        gpu = lent_gpu(watch.limits.seconds)
        for fn in page.fns.values():
            if fn.concurrency_id == MODEL_QUEUE and fn.fn is not None:
                place = fn.fn.__module__.rpartition(".")[2]  # several tabs have a "run"
                fn.fn = watch.job(fn.fn, f"{place}.{fn.name}", gpu)

    # The queue

    def jobs(self) -> tuple[list[Event], list[Event]]:
        """The waiting and the running jobs."""
        line = self._queue.event_queue_per_concurrency_id.get(MODEL_QUEUE)
        running = [event for events in list(self._queue.active_jobs) if events for event in events]
        return list(line.queue) if line else [], [e for e in running if e.concurrency_id == MODEL_QUEUE]

    def is_wanted(self, identity: str) -> bool:
        """Whether an event runs that somebody still waits for."""
        return any(event._id == identity and event.alive for event in self.jobs()[1])

    def _refusal(self, body: PredictBodyInternal, request: Request) -> str:
        """Why this job may not join the queue; empty when it may."""
        if self.stopping:
            return words.stopping()
        if self.page.fns[body.fn_index].concurrency_id != MODEL_QUEUE:  # pyright: ignore[reportArgumentType]
            return ""
        waiting, running = self.jobs()
        everyone = [*waiting, *running]
        wait = self.watch.expected_wait(len(everyone))
        if len(waiting) >= self.limits.jobs:
            return words.busy(len(waiting), wait)
        if body.session_hash:
            mine = sum(event.session_hash == body.session_hash for event in everyone)
            if mine >= self.limits.visitor_jobs:
                return words.too_many(mine, "yours", wait)
        near = sum(_address(event.request) == _address(request) for event in everyone)
        if near >= self.limits.address_jobs:
            return words.too_many(near, "your network", wait)
        return ""

    async def push(
        self, body: PredictBodyInternal, request: Request, username: str | None
    ) -> tuple[bool, Any, Any]:
        """In place of Gradio's `Queue.push`: the same for a job that is let in, a sentence for another."""
        if body.fn_index not in self.page.fns:
            return False, words.wrong_input(), "error"
        refusal = self._refusal(body, request)
        if not refusal:
            return await self._push(body, request, username)
        self.watch.write(event="refused", waiting=len(self.jobs()[0]))
        if not body.session_hash:
            return False, refusal, "queue_full"  # 503 with the sentence: a program without a session
        event = Event(body.session_hash, self.page.fns[body.fn_index], request, username)
        async with self._queue.pending_message_lock:
            if body.session_hash not in self._queue.pending_messages_per_session:
                self._queue.pending_messages_per_session[body.session_hash] = asyncio.Queue()
            self._queue.pending_event_ids_session.setdefault(body.session_hash, set()).add(event._id)
        self._tell(event, refusal)
        return True, event._id, "success"

    def _tell(self, event: Event, text: str) -> None:
        """End a job with a sentence, as an error that the page and gradio_client show."""
        output = {"error": text, "title": "Please wait", "duration": 20, "visible": True}
        self._queue.send_message(
            event, ProcessCompletedMessage(output=output, title="Please wait", success=False)
        )

    async def preprocess(self, block_fn: Any, inputs: list[Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """In place of Gradio's `preprocess_data`: what cannot be read is a sentence, not a traceback, and
        only files that were uploaded may be named.
        """
        try:
            check_all_files_in_cache(inputs)  # pyright: ignore[reportArgumentType] - JSON from a client
            return await self._preprocess(block_fn, inputs, *args, **options)
        except AppError as error:
            text = html.escape(" ".join(error.message.split())[:240], quote=False)
            raise gr.Error(text, print_exception=False) from None
        except Exception as error:
            full = isinstance(error, OSError) and error.errno is not None
            self.watch.write(event="input", error=type(error).__name__)
            text = "The server cannot store the photo just now: try again later." if full else ""
            raise gr.Error(text or words.wrong_input(), print_exception=False) from None

    # Health, files and the life of the server

    def options(self) -> dict[str, Any]:
        """What `launch` needs on top of `launch_options()`."""
        return {
            "app_kwargs": {
                "routes": [Route("/healthz", self.health)],
                "middleware": [Middleware(Gate, desk=self)],
                "lifespan": self.life,
            }
        }

    async def health(self, request: Request) -> JSONResponse:
        """Counts only, so that it answers while the model works; 503 once the server is stopping."""
        waiting, running = self.jobs()
        answer = {
            "status": "stopping" if self.stopping else "ok",
            "checkpoint": self.model_name,
            "version": __version__,
            "waiting": len(waiting),
            "running": len(running),
        }
        return JSONResponse(answer, 503 if self.stopping else 200, {"Cache-Control": "no-store"})

    @contextlib.asynccontextmanager
    async def life(self, app: Any) -> AsyncIterator[None]:  # noqa: ANN401 - Gradio's app
        """Sweep the folder of visitors' files as long as the server runs."""
        self._loop = asyncio.get_running_loop()
        task = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            task.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.to_thread(
                sweep, self.folder, self.limits.kept_seconds, self.limits.disk_megabytes * 2**20
            )
            await asyncio.sleep(SWEEP_SECONDS)

    def stop(self) -> None:
        """Tell those who wait, let what runs finish within `stop_seconds`, and close."""
        self.stopping = True
        waiting, running = self.jobs()
        self.watch.write(event="stopping", waiting=len(waiting), running=len(running))
        if self._loop is not None:
            with contextlib.suppress(Exception):  # a loop that hangs must not keep the server from closing
                asyncio.run_coroutine_threadsafe(self._send_away(), self._loop).result(5)
        deadline = time.monotonic() + self.limits.stop_seconds
        while self.jobs()[1] and time.monotonic() < deadline:
            time.sleep(0.05)
        if waiting or running:
            time.sleep(DELIVERY_SECONDS)
        self.page.close(verbose=False)
        self.watch.write(event="stopped", unfinished=len(self.jobs()[1]))

    async def _send_away(self) -> None:
        for line in self._queue.event_queue_per_concurrency_id.values():
            events, line.queue[:] = list(line.queue), []
            for event in events:
                self._queue.event_ids_to_events.pop(event._id, None)
                self._tell(event, words.stopping())


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


class Gate:
    """ASGI middleware: a request that is too large, or an upload to a full disk, ends before it is stored.

    One that Gradio cannot read ends in a sentence, and in one line of the log without what it held: the web
    server would log the exception whole, and with it perhaps a photo.
    """

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self.app = app
        self.desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._let_in(scope, receive, sent)
        except ClientDisconnect:
            pass
        except Exception as error:
            unreadable = scope["method"] == "POST" and not isinstance(error, OSError | MemoryError)
            mistake = unreadable or isinstance(error.__cause__, HTTPException)  # told while it answered
            detail = {} if mistake else {"detail": places(error)}
            self.desk.watch.write(event="request", error=type(error).__name__, **detail)
            if not started:
                answer = (words.wrong_input(), 400) if mistake else (words.fault(), 500)
                await PlainTextResponse(*answer)(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        limit = self.desk.limits.upload_megabytes * 2**20 if is_upload else BODY_BYTES
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            await self._refuse(limit)(scope, receive, send)
            return
        if is_upload and free_bytes(self.desk.folder) < LEAST_FREE_BYTES + int(length):
            await PlainTextResponse("The server's disk is full: try again later.", 507)(scope, receive, send)
            return
        taken = 0

        async def measured() -> Message:  # a body without a length
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _TooLargeError
            return message

        try:
            await self.app(scope, measured, send)
        except _TooLargeError:
            await self._refuse(limit)(scope, receive, send)

    def _refuse(self, limit: int) -> PlainTextResponse:
        text = f"The request is larger than {limit // 2**20} MB: send less at once."
        return PlainTextResponse(text, 413, {"Connection": "close"})


class _TooLargeError(Exception):
    pass


# Starting and stopping


def serve(desk: Desk) -> None:
    """Launch the page and run until SIGTERM or Ctrl-C; a second signal ends the process at once.

    Raises ValueError when the port cannot be had.
    """
    wake = threading.Event()

    def stop(number: int, frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        wake.set()

    port = choose_port()
    for each in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, stop)
    try:
        desk.page.launch(**launch_options(), **desk.options(), server_port=port, prevent_thread_lock=True)
    except OSError as error:
        raise ValueError(f"cannot serve the page: {' '.join(str(error).split())[:200]}") from None
    while desk.page.is_running and not wake.wait(0.5):
        pass
    desk.stop()


def open_desk(
    page_for: Callable[..., gr.Blocks], models: Sequence[UniRestorer], limits: Limits, folder: Path
) -> Desk:
    """The page for `models`, whose experts from now on ask whether their job may go on, and its desk."""
    for model in models:
        model.experts.guard = guard
    return Desk(page_for(*models), Watch(limits), ", ".join(m.name for m in models), folder)
