"""Named endpoints for programs (`gradio_client` or plain HTTP): /restore, /inspect and /degrade."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from unirestorer.demo.handlers import Handlers
from unirestorer.demo.hosting import jobs
from unirestorer.demo.hosting.gradio_patches import photo_input
from unirestorer.types import Task

if TYPE_CHECKING:
    from unirestorer.demo.page import Page

TASKS = [task.value for task in Task]


def sentence_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a user's mistake (ValueError) turned into the one sentence that a client is told."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        try:
            return function(*args, **options)
        except ValueError as error:
            raise gr.Error(jobs.sorry(error), print_exception=False) from None

    return wrapped


class Endpoints:
    """What programs may ask of a page; the docstrings are those that they are shown."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    @sentence_errors
    def restore(self, photo: str, tasks: list[str], expert: str) -> tuple[str, dict[str, Any]]:
        """Restore a photo. Without tasks and expert the router decides alone.

        Args:
            photo: the photo's file.
            tasks: what to undo, of derain, dehaze, denoise, deblur, lowlight, desnow, dejpeg; may be empty.
            expert: an expert to force, "level-index" such as "1-3"; may be empty.

        Returns:
            The restored photo as a PNG file of the same size, and the report: probabilities, path,
            percentiles, seconds.
        """
        return self._handlers.restore(photo, tasks, expert)

    @sentence_errors
    def inspect(self, photo: str, tasks: list[str]) -> dict[str, Any]:
        """Say what the router sees in a photo and whom it would ask, without restoring it.

        Args:
            photo: the photo's file.
            tasks: what to undo, as for /restore; may be empty.

        Returns:
            The report: probabilities, path, percentiles, seconds.
        """
        return self._handlers.inspect(photo, tasks)

    @sentence_errors
    def degrade(
        self, photo: str, recipe: str, task: str | None, strength: float | None, seed: float | None
    ) -> tuple[str, dict[str, Any]]:
        """Degrade a photo by a recipe, or by one task's degradation.

        Args:
            photo: the photo's file.
            recipe: a recipe as JSON, such as {"steps": [{"kind": "noise", "sigma_8bit": 25}]}; may be empty.
            task: used without a recipe: the task whose degradation to apply, one of those of /restore.
            strength: its strength in that degradation's own unit; empty means the middle of what was trained.
            seed: of the random parts, a whole number; empty means the recipe's own, or 0.

        Returns:
            The degraded photo as a PNG file, and the recipe that made it.
        """
        number = None if seed is None else int(seed)
        return self._handlers.degrade(photo, recipe, task or "", strength, number)


def add_endpoints(page: Page) -> None:
    """Add the three endpoints to the page under construction; their components are never drawn.

    There is one /degrade, the first model's.
    """
    endpoints = Endpoints(page.handlers)
    with gr.Group(visible=False):
        photo = photo_input(label="Photo")
        tasks = gr.CheckboxGroup(TASKS, label="Tasks")
        expert = gr.Textbox(label="Expert, level-index; may be empty")
        recipe = gr.Textbox(label="Recipe as JSON; may be empty")
        task = gr.Dropdown([*TASKS], value=None, label="Task")
        strength = gr.Number(None, label="Strength")
        seed = gr.Number(None, label="Seed", precision=0)
        image = gr.Image(type="filepath", format="png", label="Image")
        data = gr.JSON(label="Report")
        button = gr.Button()
    for function, inputs, outputs in (
        (endpoints.restore, [photo, tasks, expert], [image, data]),
        (endpoints.inspect, [photo, tasks], data),
        (endpoints.degrade, [photo, recipe, task, strength, seed], [image, data]),
    ):
        name = function.__name__
        if name != "degrade" or not page.suffix:
            button.click(
                inputs=inputs,
                outputs=outputs,
                api_name=f"{name}{page.suffix}",
                show_progress="hidden",
                **page.job(function),
            )
