"""Everything that is done to Gradio's inside, or read from there.

Gradio has no public way to refuse a job with a sentence, to see who waits, to tell those who wait that the
server stops, nor to hand over a photo's file unread. `tests/test_gradio_patches.py` fails where another
version has changed what this relies on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import Request
from gradio.context import LocalContext
from gradio.data_classes import ImageData, PredictBodyInternal
from gradio.processing_utils import check_all_files_in_cache, save_base64_to_cache
from gradio.queueing import Event
from gradio.server_messages import ProcessCompletedMessage
from gradio.utils import is_in_or_equal

from unirestorer.demo.view import notices

# (session or None for a program without one, network address, whether the job is for the line) -> why not
Refusal = Callable[[str | None, str, bool], str]


def running_event() -> str | None:
    """The identity of the event whose function runs; None for a call past the queue."""
    return LocalContext.event_id.get(None)


def photo_input(**options: Any) -> gr.Image:  # noqa: ANN401 - gr.Image's own
    """A gr.Image that hands over the file untouched, so that `load_image` alone decides what is a photo.

    Gradio's own preparation would raise on damaged files. (No subclass: Gradio writes a .pyi beside each.)
    """
    image = gr.Image(type="filepath", format="png", **options)

    def preprocess(payload: ImageData | None) -> str | None:
        if payload is None:
            return None
        if payload.url and payload.url.startswith("data:"):
            return save_base64_to_cache(payload.url, image.GRADIO_CACHE)
        if payload.path and not is_in_or_equal(payload.path, image.GRADIO_CACHE):
            # Gradio checks this of a FileData alone, and a program may leave that mark out.
            raise gr.Error("The photo has to be uploaded first.", print_exception=False)
        return payload.path

    image.preprocess = preprocess  # type: ignore[method-assign]
    return image


def explain_inputs(page: gr.Blocks, explain: Callable[[Exception], str]) -> None:
    """Inputs that cannot be read end in the sentence of `explain`, safe as HTML, instead of a traceback, and
    only files that were uploaded may be named.
    """
    own = page.preprocess_data

    async def preprocess_data(block_fn: Any, inputs: list[Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401
        try:
            check_all_files_in_cache(inputs)  # pyright: ignore[reportArgumentType] - JSON from a client
            return await own(block_fn, inputs, *args, **options)
        except Exception as error:
            raise gr.Error(explain(error), print_exception=False) from None

    page.preprocess_data = preprocess_data  # type: ignore[method-assign]


@dataclass(frozen=True)
class Ticket:
    """A job of the line: its event's identity, its visitor's open page, and where that visitor is."""

    identity: str
    session: str
    address: str


class Line:
    """The line `name` of a page's queue, seen from outside Gradio.

    `refuse` is asked before any event joins any line: a sentence ends it there.
    """

    def __init__(self, page: gr.Blocks, name: str, refuse: Refusal) -> None:
        self._page, self._name, self._refuse = page, name, refuse
        self._queue = page._queue
        self._push = self._queue.push
        self._queue.push = self._ask  # type: ignore[method-assign]

    def waiting(self) -> list[Ticket]:
        """The jobs that wait, the next one first."""
        line = self._queue.event_queue_per_concurrency_id.get(self._name)
        return [_ticket(event) for event in list(line.queue)] if line else []

    def running(self) -> list[Ticket]:
        """The jobs whose functions run."""
        return [_ticket(event) for event in self._running()]

    def is_awaited(self, identity: str) -> bool:
        """Whether an event runs that somebody still waits for."""
        return any(event._id == identity and event.alive for event in self._running())

    async def dismiss(self, sentence: str) -> None:
        """Tell all who wait, in any line, and let them go."""
        for line in self._queue.event_queue_per_concurrency_id.values():
            events, line.queue[:] = list(line.queue), []
            for event in events:
                self._queue.event_ids_to_events.pop(event._id, None)
                self._tell(event, sentence)

    def _running(self) -> list[Event]:
        active = [event for events in list(self._queue.active_jobs) if events for event in events]
        return [event for event in active if event.concurrency_id == self._name]

    async def _ask(
        self, body: PredictBodyInternal, request: Request, username: str | None
    ) -> tuple[bool, Any, Any]:
        """In place of `Queue.push`: the same for a job that is let in, a sentence for another."""
        fn = self._page.fns.get(body.fn_index)  # pyright: ignore[reportArgumentType]
        if fn is None:
            return False, notices.wrong_input(), "error"
        sentence = self._refuse(body.session_hash, _address(request), fn.concurrency_id == self._name)
        if not sentence:
            return await self._push(body, request, username)
        if not body.session_hash:
            return False, sentence, "queue_full"  # 503 with the sentence: a program without a session
        event = Event(body.session_hash, fn, request, username)
        async with self._queue.pending_message_lock:
            if body.session_hash not in self._queue.pending_messages_per_session:
                self._queue.pending_messages_per_session[body.session_hash] = asyncio.Queue()
            self._queue.pending_event_ids_session.setdefault(body.session_hash, set()).add(event._id)
        self._tell(event, sentence)
        return True, event._id, "success"

    def _tell(self, event: Event, sentence: str) -> None:
        """End a job with a sentence, as an error that the page and gradio_client show."""
        output = {"error": sentence, "title": "Please wait", "duration": 20, "visible": True}
        self._queue.send_message(
            event, ProcessCompletedMessage(output=output, title="Please wait", success=False)
        )


def _ticket(event: Event) -> Ticket:
    return Ticket(event._id, event.session_hash, _address(event.request))


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
