"""The lessons' tab: components, events and live figures; `demo/lessons.py` holds what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch
import torch.nn.functional as F

from unirestorer.demo.handlers import Memory
from unirestorer.demo.lab import Spoiling
from unirestorer.demo.lessons import Lesson, lesson_html, lessons_of, reply_html, show_label
from unirestorer.demo.view import words
from unirestorer.demo.view.html import bars, probability_bar, table
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Estimate

if TYPE_CHECKING:
    from unirestorer.demo.page import Page

WIDTH = 3  # of the noise, times the learned one, to start with


@dataclass(frozen=True)
class Reader:
    """The components of a lesson, and which one is open."""

    number: gr.State
    text: gr.HTML
    show: gr.Button
    numbers: gr.HTML
    noise: gr.Row
    question: gr.Radio
    answer: gr.HTML
    back: gr.Button
    forward: gr.Button


@dataclass(frozen=True)
class NoiseControls:
    width: gr.Slider
    draw: gr.Button
    seed: gr.State


def add(page: Page) -> None:
    """Add the tab to the page under construction.

    Lessons set the photo and the tasks of the Restore tab, and the lab, and follow the results. The address
    may name a lesson.
    """
    lessons = lessons_of(page.model)
    with gr.Tab("Lessons", id="lessons") as tab:
        reader, noise = _components(lessons[0], len(lessons))
        _connect_pages(page, lessons, reader, noise)
        _connect_page(page, tab, lessons, reader)


def _components(lesson: Lesson, count: int) -> tuple[Reader, NoiseControls]:
    """Those of the first of `count` lessons."""
    with gr.Column(elem_classes="card", elem_id="lessons"):
        number = gr.State(0)
        text = gr.HTML(lesson_html(lesson, 0, count), elem_id="lesson")
        show = gr.Button(show_label(lesson), variant="primary", size="md", elem_id="lesson-show")
        numbers = gr.HTML(visible=False, elem_id="lesson-numbers")
        with gr.Row(visible=False) as noise:
            width = gr.Slider(
                0, 10, WIDTH, step=0.5, label="Width of the noise, times the learned one", buttons=[]
            )
            draw = gr.Button("Draw again", elem_id="lesson-draw")
        question = gr.Radio(
            list(lesson.choices), type="index", label=lesson.question, elem_id="lesson-question"
        )
        answer = gr.HTML(elem_id="lesson-answer")
        with gr.Row():
            back = gr.Button("Back", interactive=False, elem_id="lesson-back")
            forward = gr.Button("Next lesson", elem_id="lesson-next")
    reader = Reader(number, text, show, numbers, noise, question, answer, back, forward)
    return reader, NoiseControls(width, draw, gr.State(0))


def _connect_pages(page: Page, lessons: tuple[Lesson, ...], reader: Reader, noise: NoiseControls) -> None:
    """Turning the pages, answering, and the figures of the visitor's own photo."""

    def live(number: int, memory: Memory | None, width: float, seed: int) -> str:
        estimate: Estimate | None = memory.decision.estimate if memory else None
        kind = lessons[number].numbers
        if kind == "likelihood":
            return likelihood_html(page.model, estimate)
        return noise_html(page.model, estimate, width, seed) if kind == "noise" else ""

    def turn(number: int, memory: Memory | None, width: float, seed: int) -> list[Any]:
        lesson = lessons[number]
        return [
            number,
            lesson_html(lesson, number, len(lessons)),
            gr.Button(show_label(lesson), visible=lesson.scene is not None),
            gr.HTML(live(number, memory, width, seed), visible=bool(lesson.numbers)),
            gr.Row(visible=lesson.numbers == "noise"),
            gr.Radio(list(lesson.choices), value=None, label=lesson.question),
            "",
            gr.Button(interactive=number > 0),
            gr.Button(interactive=number + 1 < len(lessons)),
        ]

    def forth(number: int, memory: Memory | None, width: float, seed: int) -> list[Any]:
        return turn(min(number + 1, len(lessons) - 1), memory, width, seed)

    def fro(number: int, memory: Memory | None, width: float, seed: int) -> list[Any]:
        return turn(max(number - 1, 0), memory, width, seed)

    def redraw(number: int, memory: Memory | None, width: float, seed: int) -> tuple[str, int]:
        return live(number, memory, width, seed + 1), seed + 1

    def reply(number: int, choice: int | None) -> str:
        return reply_html(lessons[number], choice)

    def open_lesson(request: gr.Request) -> list[Any]:
        return turn(page.link(request).lesson - 1, None, WIDTH, 0)

    inputs = [reader.number, page.memory, noise.width, noise.seed]
    everything = list(vars(reader).values())
    reader.forward.click(forth, inputs, everything, **page.quiet)
    reader.back.click(fro, inputs, everything, **page.quiet)
    reader.question.input(reply, [reader.number, reader.question], reader.answer, **page.quiet)
    noise.draw.click(redraw, inputs, [reader.numbers, noise.seed], **page.quiet)
    noise.width.release(redraw, inputs, [reader.numbers, noise.seed], **page.quiet)
    page.restore.result.then(live, inputs, reader.numbers, **page.quiet)
    page.blocks.load(open_lesson, None, everything, **page.quiet)


def _connect_page(page: Page, tab: gr.Tab, lessons: tuple[Lesson, ...], reader: Reader) -> None:
    """A lesson sets the other tabs, and a button leads back from there."""
    tasks, photo, controls = page.sidebar.tasks, page.restore.photo, page.lab

    def set_page(number: int) -> dict[Any, Any]:
        scene = lessons[number].scene
        if scene is None:
            return {page.tabs: gr.Tabs()}
        away = scene.tab != "lessons"
        updates: dict[Any, Any] = {
            page.tabs: gr.Tabs(selected=scene.tab),
            page.to_lesson: gr.Button(visible=away),
        }
        if scene.tab == "restore":
            updates[tasks] = [task.value for task in scene.tasks]
        if scene.task is not None:
            updates |= controls.set(Spoiling(scene.task, scene.strength(controls.scales[scene.task])))
        return updates

    def set_photo(number: int, photo: str | None) -> str | None:
        # By itself: a component left out of a dict of updates is rebuilt without `photo_input`'s preprocess.
        scene = lessons[number].scene
        matching = [example for example in page.examples if scene and example.word == scene.example]
        return page.handlers.keep(matching[0].path) if matching else photo

    reader.show.click(set_photo, [reader.number, photo], photo, **page.quiet)
    targets = [page.tabs, page.to_lesson, tasks, *controls.parts]
    reader.show.click(set_page, reader.number, targets, **page.quiet)
    page.to_lesson.click(lambda: gr.Tabs(selected="lessons"), None, page.tabs, **page.quiet)
    tab.select(lambda: gr.Button(visible=False), None, page.to_lesson, **page.quiet)


# Live figures


def likelihood_html(model: UniRestorer, estimate: Estimate | None) -> str:
    """Both terms of Eq. 7 for a photo's own estimate, mean over the 512 numbers."""
    if estimate is None:
        return '<p class="sub">Give a photo in the Restore tab, or take the example, to see its numbers.</p>'
    leaf = int(model.router.route(estimate).leaf)
    u = model.router.standardised(model.tree.centers[-1].to(estimate.e))[leaf]
    misfit, price = likelihood_terms(estimate, u)
    rows = (
        f'<tr><th scope="row">misfit over claimed variance</th><td>{misfit:.3f}</td></tr>',
        f'<tr><th scope="row">price of the claim, ½ ln e<sub>gran</sub></th><td>{price:.3f}</td></tr>',
        f'<tr class="best"><th scope="row">together</th><td>{misfit + price:.3f}</td></tr>',
    )
    return table("scores", (), rows)


def likelihood_terms(estimate: Estimate, u: torch.Tensor) -> tuple[float, float]:
    """The two terms of Eq. 7 for one photo and a centre u (D,), standardised."""
    squared = (u - estimate.e_deg[0]).square()
    misfit = (0.5 * squared * torch.exp(-estimate.log_e_gran[0])).mean()
    return float(misfit), float(0.5 * estimate.log_e_gran[0].mean())


def noise_html(model: UniRestorer, estimate: Estimate | None, scale: float, seed: int) -> str:
    """Leaf probabilities without noise, and with one draw of it, `scale` times as wide as learned."""
    if estimate is None:
        return '<p class="sub">Give a photo in the Restore tab, or take the example, to see its leaves.</p>'
    plain, noisy = noisy_leaf_probs(model, estimate, scale, seed)
    best = sorted(
        {*plain.topk(min(4, len(plain))).indices.tolist(), int(noisy.argmax())}, key=lambda i: -plain[i]
    )
    return bars(
        probability_bar("", words.spoken(model.tree.names[-1][leaf]), float(plain[leaf]))
        + probability_bar("", "… with noise", float(noisy[leaf]), chosen=leaf == int(noisy.argmax()))
        for leaf in best
    )


@torch.no_grad()
def noisy_leaf_probs(
    model: UniRestorer, estimate: Estimate, scale: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaf probabilities (leaves,) as served, and with the noise of Eq. 2 drawn under `seed`."""
    gate = model.router.gate_leaf
    logits = gate.gate(estimate.e_deg)[0]
    width = F.softplus(gate.noise(estimate.e_deg))[0]
    drawn = torch.randn(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits)
    return logits.softmax(-1).cpu(), (logits + scale * drawn * width).softmax(-1).cpu()
