"""The lessons' components and events; `lessons` holds what they say."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.events import Dependency

from unirestorer.demo.examples import Example
from unirestorer.demo.handlers import Handlers, Memory
from unirestorer.demo.lab import Spoiling
from unirestorer.demo.lessons import LESSONS, lesson_html, likelihood_html, noise_html, show_label, verdict
from unirestorer.demo.link import read_link
from unirestorer.demo.tabs.lab import Controls, lab_parts, set_lab
from unirestorer.types import Estimate


def add_lessons(
    page: gr.Blocks,
    handlers: Handlers,
    tab: gr.Tab,
    running: Dependency,
    tabs: gr.Tabs,
    memory: gr.State,
    photo: gr.Image,
    tasks: gr.CheckboxGroup,
    lab: Controls,
    return_: gr.Button,
    examples: tuple[Example, ...],
) -> None:
    """Fill the tab under construction; lessons set `photo` and `tasks` of the Restore tab, and the lab, and
    follow its results, which `running` ends with. `return_` leads back from there. The address may name a
    lesson.
    """
    model = handlers.model
    with gr.Column(elem_classes="card", elem_id="lessons"):
        number = gr.State(0)
        text = gr.HTML(lesson_html(0), elem_id="lesson")
        show = gr.Button(show_label(0), variant="primary", size="md", elem_id="lesson-show")
        numbers = gr.HTML(visible=False, elem_id="lesson-numbers")
        with gr.Row(visible=False) as noise:
            width = gr.Slider(
                0, 10, 3, step=0.5, label="Width of the noise, times the learned one", buttons=[]
            )
            draw = gr.Button("Draw again", elem_id="lesson-draw")
        question = gr.Radio(
            list(LESSONS[0].choices), type="index", label=LESSONS[0].question, elem_id="lesson-question"
        )
        answer = gr.HTML(elem_id="lesson-answer")
        with gr.Row():
            back = gr.Button("Back", interactive=False, elem_id="lesson-back")
            forward = gr.Button("Next lesson", elem_id="lesson-next")
    seed = gr.State(0)

    def live(number: int, memory: Memory | None, width: float, seed: int) -> str:
        estimate: Estimate | None = memory.decision.estimate if memory else None
        kind = LESSONS[number].numbers
        if kind == "likelihood":
            return likelihood_html(model, estimate)
        return noise_html(model, estimate, width, seed) if kind == "noise" else ""

    def turn(number: int, memory: Memory | None, width: float, seed: int) -> list[Any]:
        lesson = LESSONS[number]
        return [
            number,
            lesson_html(number),
            gr.Button(show_label(number), visible=lesson.setting is not None),
            gr.HTML(live(number, memory, width, seed), visible=bool(lesson.numbers)),
            gr.Row(visible=lesson.numbers == "noise"),
            gr.Radio(list(lesson.choices), value=None, label=lesson.question),
            "",
            gr.Button(interactive=number > 0),
            gr.Button(interactive=number + 1 < len(LESSONS)),
        ]

    def forth(number: int, memory: Memory | None, width: float, seed: int) -> list[Any]:
        return turn(min(number + 1, len(LESSONS) - 1), memory, width, seed)

    def fro(number: int, memory: Memory | None, width: float, seed: int) -> list[Any]:
        return turn(max(number - 1, 0), memory, width, seed)

    def redraw(number: int, memory: Memory | None, width: float, seed: int) -> tuple[str, int]:
        return live(number, memory, width, seed + 1), seed + 1

    def set_page(number: int) -> dict[Any, Any]:
        setting = LESSONS[number].setting
        if setting is None:
            return {tabs: gr.Tabs()}
        away = setting.tab != "lessons"
        updates: dict[Any, Any] = {tabs: gr.Tabs(selected=setting.tab), return_: gr.Button(visible=away)}
        if setting.tab == "restore":
            updates[tasks] = [task.value for task in setting.tasks]
        if setting.task is not None:
            updates |= set_lab(lab, Spoiling(setting.task, setting.strength))
        return updates

    def open_lesson(request: gr.Request) -> list[Any]:
        link = read_link(dict(request.query_params), model.tree, len(examples))
        return turn(link.lesson - 1, None, 3, 0)

    def set_photo(number: int, photo: str | None) -> str | None:
        # By itself: a component left out of a dict of updates is rebuilt without `photo_input`'s preprocess.
        setting = LESSONS[number].setting
        found = [example for example in examples if setting and example.word == setting.example]
        return handlers.keep(found[0].path) if found else photo

    quiet: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    inputs = [number, memory, width, seed]
    everything = [number, text, show, numbers, noise, question, answer, back, forward]
    forward.click(forth, inputs, everything, **quiet)
    back.click(fro, inputs, everything, **quiet)
    question.input(verdict, [number, question], answer, **quiet)
    draw.click(redraw, inputs, [numbers, seed], **quiet)
    width.release(redraw, inputs, [numbers, seed], **quiet)
    running.then(live, inputs, numbers, **quiet)
    show.click(set_photo, [number, photo], photo, **quiet)
    show.click(set_page, number, [tabs, return_, tasks, *lab_parts(lab)], **quiet)
    return_.click(lambda: gr.Tabs(selected="lessons"), None, tabs, **quiet)
    tab.select(lambda: gr.Button(visible=False), None, return_, **quiet)
    page.load(open_lesson, None, everything, **quiet)
