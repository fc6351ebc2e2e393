"""What `hosting/gradio_patches.py` relies on inside Gradio, and what it does there.

A failure here after an upgrade says which patch to look at.
"""

import asyncio
import inspect
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio import component_meta, data_classes, queueing, routes
from gradio.blocks import Blocks
from gradio.context import LocalContext
from gradio.data_classes import PredictBodyInternal
from gradio.processing_utils import check_all_files_in_cache, save_base64_to_cache
from gradio.queueing import Event, EventQueue, Queue
from gradio.server_messages import ProcessCompletedMessage
from gradio.utils import is_in_or_equal

from unirestorer.demo.hosting.gradio_patches import Line, Ticket, explain_inputs, photo_input, running_event
from unirestorer.demo.view import notices


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_gradios_functions_take_what_they_are_given() -> None:
    assert parameters(Queue.push) == ["self", "body", "request", "username"]
    assert inspect.iscoroutinefunction(Queue.push)
    assert parameters(Queue.send_message) == ["self", "event", "event_message"]
    assert parameters(Event) == ["session_hash", "fn", "request", "username"]
    assert parameters(Blocks.preprocess_data) == ["self", "block_fn", "inputs", "state", "explicit_call"]
    assert inspect.iscoroutinefunction(Blocks.preprocess_data)
    assert {"status_update_rate", "api_open", "max_size"} <= set(parameters(Blocks.queue))
    assert parameters(gr.Image.preprocess) == ["self", "payload"]
    assert parameters(check_all_files_in_cache)[0] == "data"
    assert parameters(save_base64_to_cache)[:2] == ["base64_encoding", "cache_dir"]
    assert len(parameters(is_in_or_equal)) == 2
    assert isinstance(LocalContext.event_id, ContextVar)


def test_gradios_objects_hold_what_is_read() -> None:
    page = make_page()
    queue, fn = page._queue, next(iter(page.fns.values()))
    event = Event("session", fn, request("1.2.3.4"), None)  # type: ignore[arg-type]
    assert {"_id", "session_hash", "request", "alive", "concurrency_id"} <= set(vars(event))
    assert event.alive and event.concurrency_id == "line"
    assert isinstance(queue.event_queue_per_concurrency_id, dict)
    assert EventQueue("line", 1).queue == []
    assert isinstance(queue.active_jobs, list) and isinstance(queue.event_ids_to_events, dict)
    assert isinstance(queue.pending_event_ids_session, dict)
    assert hasattr(queue.pending_messages_per_session, "__contains__")
    assert hasattr(queue.pending_message_lock, "__aenter__")
    assert {"fn_index", "session_hash"} <= set(PredictBodyInternal.model_fields)
    assert {"output", "title", "success"} <= set(ProcessCompletedMessage.model_fields)
    assert {"path", "url"} <= set(data_classes.ImageData.model_fields)
    assert page.fns[fn._id] is fn and fn.inputs == []


def test_gradio_comes_through_the_patched_doors() -> None:
    """Patched attributes are of no use once Gradio calls something else."""
    join = inspect.getsource(routes)
    assert "blocks._queue.push(" in join and '"queue_full": status.HTTP_503_SERVICE_UNAVAILABLE' in join
    assert "self.preprocess_data(" in inspect.getsource(Blocks.process_api)
    assert "block.preprocess" in inspect.getsource(Blocks.preprocess_data)
    assert "if not event.alive" in inspect.getsource(Queue.send_message)
    assert "self.active_jobs[" in inspect.getsource(queueing), "where running events are listed"
    subclass = inspect.getsource(component_meta.ComponentMeta.__new__)
    assert "create_or_modify_pyi" in subclass, "else photo_input may be a subclass of gr.Image"


def make_page() -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Button().click(lambda: None, concurrency_id="line", concurrency_limit=1)
    return page.queue()


def request(address: str) -> Any:
    return SimpleNamespace(client=SimpleNamespace(host=address))


def push(page: gr.Blocks, number: int, session: str | None = "a") -> tuple[bool, Any, Any]:
    body = PredictBodyInternal(fn_index=number, session_hash=session, data=[], request=None)
    return asyncio.run(page._queue.push(body, request("1.2.3.4"), None))


def errors(page: gr.Blocks, session: str) -> list[str]:
    """The sentences that a session's jobs have ended with."""
    pending = page._queue.pending_messages_per_session[session]
    messages = [pending.get_nowait() for _ in range(pending.qsize())]
    return [message.output["error"] for message in messages if isinstance(message, ProcessCompletedMessage)]


def test_a_line_lets_in_and_refuses() -> None:
    asked: list[tuple[str | None, str, bool]] = []
    page, sentence = make_page(), [""]

    def refuse(session: str | None, address: str, in_line: bool) -> str:
        asked.append((session, address, in_line))
        return sentence[0]

    line = Line(page, "line", refuse)
    (number,) = page.fns
    assert line.waiting() == line.running() == []
    let_in, identity, state = push(page, number)
    assert let_in and state == "success" and asked == [("a", "1.2.3.4", True)]
    assert line.waiting() == [Ticket(identity, "a", "1.2.3.4")]
    assert not line.is_awaited(identity), "it does not run yet"
    sentence[0] = "full"
    refused, other, state = push(page, number, "b")
    assert refused and state == "success" and other != identity, "the page shows why: see its messages"
    assert errors(page, "b") == ["full"] and len(line.waiting()) == 1
    assert push(page, number, None) == (False, "full", "queue_full")
    assert push(page, 10**6) == (False, notices.wrong_input(), "error")
    asyncio.run(line.dismiss("closing"))
    assert line.waiting() == [] and errors(page, "a") == ["closing"]
    event = Event("a", page.fns[number], request("1.2.3.4"), None)
    page._queue.active_jobs = [None, [event]]
    assert [ticket.identity for ticket in line.running()] == [event._id] and line.is_awaited(event._id)
    event.alive = False
    assert not line.is_awaited(event._id)


def test_inputs_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    page = make_page()
    (fn,) = page.fns.values()
    explain_inputs(page, lambda error: f"explained {type(error).__name__}")
    assert asyncio.run(page.preprocess_data(fn, [], None)) == []
    with pytest.raises(gr.Error, match="explained"):
        asyncio.run(
            page.preprocess_data(fn, [{"path": str(tmp_path), "meta": {"_type": "gradio.FileData"}}], None)
        )


def test_a_photo_input_is_prepared_by_itself_alone() -> None:
    assert "preprocess" in vars(photo_input()) and "preprocess" not in vars(gr.Image())


def test_outside_an_event_none_runs() -> None:
    assert running_event() is None
    token = LocalContext.event_id.set("x")
    assert running_event() == "x"
    LocalContext.event_id.reset(token)
    assert [field.name for field in fields(Ticket)] == ["identity", "session", "address"]
