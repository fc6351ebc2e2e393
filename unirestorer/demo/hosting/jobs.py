"""One visitor's use of the model as a job: it can be stopped, it has a time limit, and it leaves one line in
the log, without photo or name.

`Watch.job` makes a job of a function that runs the model; `guard`, which every model is given, asks between
two tiles whether the running one may go on.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

import gradio as gr
from gradio_client.exceptions import AppError
from torch import Tensor

from unirestorer.checkpoint import PartError
from unirestorer.demo.hosting.gradio_patches import running_event
from unirestorer.demo.hosting.host import Limits, give_back_memory, lent_gpu
from unirestorer.demo.view import notices
from unirestorer.experts import out_of_memory

MODEL_QUEUE = "model"  # every event that runs the model waits in this one line
RECENT = 20  # jobs whose mean duration makes the expected wait


class StoppedError(ValueError):
    """The visitor cancelled, or has left."""


class OutOfTimeError(ValueError):
    """The job took longer than allowed."""


@dataclass
class Job:
    """What a job leaves in the log, filled in while it runs."""

    watch: Watch
    event: str
    identity: str | None  # of Gradio's event; None = called without the queue
    started: float = field(default_factory=time.monotonic)
    size: tuple[int, int] | None = None  # width, height
    experts: list[str] = field(default_factory=list)
    error: str | None = None  # a class name
    detail: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


_current: ContextVar[Job | None] = ContextVar("job", default=None)


def sorry(error: ValueError) -> str:
    """`notices.sorry` for an error that a visitor is about to be told; its kind goes into the job's line."""
    job = _current.get()
    if job is not None:
        _note(job, error)
    return notices.sorry(error)


def _note(job: Job, error: BaseException) -> None:
    """The error's class; where it is ours, also what happened, in places of the code and never in values."""
    job.error = type(error).__name__
    if isinstance(error, PartError):  # its path is for the log, never for the page
        job.detail = [str(error)]
    elif not isinstance(error, ValueError | AppError):
        job.detail = places(error)


def places(error: BaseException) -> list[str]:
    """Where an error came from, innermost last: "file:line function"."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-6:]]


class Watch:
    """All jobs of a server, whose lines go to `log`, or else to stderr.

    `is_wanted` says of an event's identity whether somebody still waits for it.
    """

    def __init__(self, limits: Limits, log: TextIO | None = None) -> None:
        self.limits = limits
        self.is_wanted: Callable[[str], bool] = lambda identity: True
        self.log = log
        self._durations: deque[float] = deque(maxlen=RECENT)
        self._model = threading.Lock()  # a cancelled job's thread runs on to its next tile

    def expected_wait(self, jobs: int) -> float:
        """Seconds that this many jobs take, by those that were finished last."""
        return jobs * (fmean(self._durations) if self._durations else 5.0)

    def write(self, **entry: Any) -> None:  # noqa: ANN401 - JSON data
        """One line of the log."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry})
        with contextlib.suppress(OSError, ValueError):  # a log that is full or closed stops no job
            print(line, file=self.log or sys.stderr, flush=True)  # noqa: T201 - this is the log

    def may_go_on(self, job: Job) -> None:
        """Raises StoppedError or OutOfTimeError where the job has to end."""
        if job.seconds > self.limits.seconds:
            raise OutOfTimeError(notices.out_of_time(self.limits.seconds))
        if job.identity is not None and not self.is_wanted(job.identity):
            raise StoppedError("the job was stopped")

    def job(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of the page as a job, named in the log by its module and its own name."""
        event = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"  # several tabs have a "run"
        work = lent_gpu(self.limits.seconds)(function)
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def steps(*args: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401
                job = Job(self, event, running_event())
                results = work(*args, **options)
                nothing = object()
                try:
                    while True:
                        with self._running(job):  # set anew: each step may run in another context
                            result = next(results, nothing)
                        if result is nothing or job.error == StoppedError.__name__:  # nobody is there
                            return
                        yield result
                except GeneratorExit:
                    job.error = job.error or StoppedError.__name__
                    raise
                finally:
                    self._finished(job)

            return steps

        @functools.wraps(function)
        def whole(*args: Any, **options: Any) -> Any:  # noqa: ANN401
            job = Job(self, event, running_event())
            try:
                with self._running(job):
                    return work(*args, **options)
            finally:
                self._finished(job)

        return whole

    @contextlib.contextmanager
    def _running(self, job: Job) -> Iterator[None]:
        """Alone with the model; what nobody expected becomes a sentence that blames nobody's photo."""
        token = _current.set(job)
        try:
            with self._model:
                yield
        except AppError as error:  # a sentence already
            job.error = job.error or type(error).__name__
            raise
        except ValueError as error:
            raise gr.Error(sorry(error), print_exception=False) from None
        except Exception as error:
            _note(job, error)
            text = notices.no_memory() if out_of_memory(error) else notices.fault()
            raise gr.Error(text, print_exception=False) from None
        finally:
            _current.reset(token)

    def _finished(self, job: Job) -> None:
        give_back_memory()
        if job.error is None:
            self._durations.append(job.seconds)
        entry: dict[str, Any] = {"event": job.event, "seconds": round(job.seconds, 3)}
        if job.size:
            entry |= {"width": job.size[0], "height": job.size[1]}
        if job.experts:
            entry["experts"] = job.experts
        if job.error:
            entry["error"] = job.error
        if job.detail:
            entry["detail"] = job.detail
        self.write(**entry)


def guard(x: Tensor, expert: str) -> None:
    """What the page gives to `ExpertBank.guard`: ends the running job where it has to, and fills in its line.

    Raises StoppedError or OutOfTimeError.
    """
    job = _current.get()
    if job is None:
        return
    job.watch.may_go_on(job)
    job.size = (x.shape[3], x.shape[2])
    if expert and expert not in job.experts:
        job.experts.append(expert)
