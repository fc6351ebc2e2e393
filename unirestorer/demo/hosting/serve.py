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
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import Request
from gradio_client.exceptions import AppError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unirestorer import __version__
from unirestorer.demo.hosting.gradio_patches import Line, Ticket, explain_inputs
from unirestorer.demo.hosting.host import Limits, choose_port, free_bytes, sweep
from unirestorer.demo.hosting.jobs import MODEL_QUEUE, Watch, guard, places
from unirestorer.demo.page import build_page, launch_options
from unirestorer.demo.view import notices
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
        self.line = Line(page, MODEL_QUEUE, self._refusal)
        explain_inputs(page, self._explanation)
        watch.is_wanted = self.line.is_awaited

    # The queue

    def jobs(self) -> tuple[list[Ticket], list[Ticket]]:
        """The waiting and the running jobs."""
        return self.line.waiting(), self.line.running()

    def _refusal(self, session: str | None, address: str, runs_model: bool) -> str:
        """Why this job may not join the queue; empty when it may."""
        sentence = self._too_busy(session, address) if runs_model else ""
        if self.stopping:
            sentence = notices.stopping()
        if sentence:
            self.watch.write(event="refused", waiting=len(self.line.waiting()))
        return sentence

    def _too_busy(self, session: str | None, address: str) -> str:
        waiting, running = self.jobs()
        everyone = [*waiting, *running]
        wait = self.watch.expected_wait(len(everyone))
        if len(waiting) >= self.limits.jobs:
            return notices.busy(len(waiting), wait)
        own = sum(ticket.session == session for ticket in everyone)
        if session and own >= self.limits.visitor_jobs:
            return notices.too_many(own, "yours", wait)
        near = sum(ticket.address == address for ticket in everyone)
        if near >= self.limits.address_jobs:
            return notices.too_many(near, "your network", wait)
        return ""

    def _explanation(self, error: Exception) -> str:
        """What a visitor is told whose inputs cannot be read."""
        if isinstance(error, AppError):
            return html.escape(" ".join(error.message.split())[:240], quote=False)
        self.watch.write(event="input", error=type(error).__name__)
        full = isinstance(error, OSError) and error.errno is not None
        return notices.no_room() if full else notices.wrong_input()

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
                farewell = self.line.dismiss(notices.stopping())
                asyncio.run_coroutine_threadsafe(farewell, self._loop).result(5)
        deadline = time.monotonic() + self.limits.stop_seconds
        while self.jobs()[1] and time.monotonic() < deadline:
            time.sleep(0.05)
        if waiting or running:
            time.sleep(DELIVERY_SECONDS)
        self.page.close(verbose=False)
        self.watch.write(event="stopped", unfinished=len(self.jobs()[1]))


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
                answer = (notices.wrong_input(), 400) if mistake else (notices.fault(), 500)
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


def open_desk(models: Sequence[UniRestorer], limits: Limits, folder: Path, *, ahead: bool = False) -> Desk:
    """The page for `models`, whose experts from now on ask whether their job may go on, and its desk.

    With `ahead` the examples are restored at once, in a thread of their own.
    """
    for model in models:
        model.experts.guard = guard
    watch = Watch(limits)
    page = build_page(models, watch, ahead=ahead)
    return Desk(page, watch, ", ".join(model.name for model in models), folder)
