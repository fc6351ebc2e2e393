"""The degradation lab's components and events; `lab` decides, `lab_figures` and `words` show."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from unirestorer.degradation import RANGES
from unirestorer.degradation.recipe import degree_words
from unirestorer.demo import figures, jobs, lab_figures, words
from unirestorer.demo.lab import Lab, Trial, beyond, known_tasks, span
from unirestorer.demo.photo import photo_input
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Task

INTRO = """<h2 class="title">Degradation lab</h2><p class="sub">Take a clean photo, spoil it by a known
amount, and watch the router: since the original is known, every expert can be scored.</p>"""
SWEEP_INTRO = """<h2 class="title">From none to beyond training</h2><p class="sub">The same photo at thirteen
strengths. Where the estimate gets shaky, a coarser expert should take over: see whether it does, and what it
gains.</p>"""


@dataclass(frozen=True)
class Controls:
    photo: gr.Image
    task: gr.Radio
    strength: gr.Slider
    seed: gr.Number


@dataclass(frozen=True)
class Display:
    verdict: gr.HTML
    slider: gr.ImageSlider
    scores: gr.HTML
    sure: gr.HTML


@dataclass(frozen=True)
class SweepDisplay:
    button: gr.Button
    sentence: gr.HTML
    curves: gr.Plot
    trajectory: gr.Plot


def add_lab(lab: Lab, tab: gr.Tab, queue: str) -> Controls:
    """Fill the tab under construction and connect its events; returns what lessons may set."""
    with gr.Row(equal_height=True):
        controls = _controls(known_tasks(lab.model.tree))
        display = _display()
    sweep = _sweep()
    _connect(lab, tab, controls, display, sweep, queue)
    return controls


def strength_slider(task: Task) -> dict[str, Any]:
    """The slider's settings for one degradation: its span, a middling strength, and what was trained."""
    low, high = RANGES["single"][task]["in"]
    ends = span(task)
    whole = max(ends) > 5
    middle = (low + high) / 2
    return {
        "minimum": min(ends),
        "maximum": max(ends),
        "value": round(middle) if whole else round(middle, 2),
        "step": 1 if whole else 0.05,
        "label": words.strength_label(task),
        "info": words.trained_range(task, low, high),
    }


def _controls(tasks: tuple[Task, ...]) -> Controls:
    with gr.Column(scale=4, min_width=320, elem_classes="card"):
        gr.HTML(INTRO)
        task = gr.Radio(
            [(words.TASK_WORDS[task], task.value) for task in tasks],
            value=tasks[0].value,
            label="Spoil it with",
            elem_id="lab-task",
        )
        strength = gr.Slider(**strength_slider(tasks[0]), elem_id="lab-strength", buttons=[])
        seed = gr.Number(0, label="Seed of the random parts", precision=0, minimum=0, elem_id="lab-seed")
        photo = photo_input(
            sources=["upload", "clipboard"],
            label="Your own clean photo",
            height=190,
            buttons=[],
            elem_id="lab-photo",
            alt_text="The clean photo you gave",
        )
    return Controls(photo, task, strength, seed)


def _display() -> Display:
    with gr.Column(scale=6, min_width=320, elem_classes="card"):
        verdict = gr.HTML(elem_id="lab-verdict")
        slider = gr.ImageSlider(
            format="png",
            type="filepath",
            interactive=False,
            show_label=False,
            max_height=420,
            buttons=["fullscreen"],
            elem_id="lab-slider",
        )
        scores = gr.HTML(elem_id="lab-scores")
    with gr.Column(scale=4, min_width=280, elem_classes="card"):
        sure = gr.HTML(elem_id="lab-sure")
    return Display(verdict, slider, scores, sure)


def _sweep() -> SweepDisplay:
    with gr.Column(elem_classes="card", elem_id="sweep"):
        gr.HTML(SWEEP_INTRO)
        button = gr.Button("Sweep the strength", variant="primary", elem_id="lab-sweep", size="md")
        sentence = gr.HTML(elem_id="lab-swept")
        with gr.Row():
            with gr.Column(scale=6, min_width=320):
                curves = gr.Plot(show_label=False, container=False, visible=False, elem_id="lab-curves")
            with gr.Column(scale=5, min_width=320):
                trajectory = gr.Plot(
                    show_label=False, container=False, visible=False, elem_id="lab-trajectory"
                )
    return SweepDisplay(button, sentence, curves, trajectory)


def verdict_html(trial: Trial, task: Task, strength: float) -> str:
    """What was done to the photo, and what the router thinks of it."""
    steps = trial.recipe.steps
    name = degree_words(steps[0]) if steps else f"no {words.TASK_WORDS[task]}"
    made = words.made_with(name, strength, trial.recipe.seed, is_beyond=beyond(task, strength))
    return (
        f'<div class="verdict"><p class="lead">{html.escape(words.looks_like(trial.report))}</p>'
        f'<p>{html.escape(words.took_over(trial.report))}</p></div><p class="sub">{made}</p>'
    )


def sure_html(model: UniRestorer, trial: Trial) -> str:
    """Where the estimate's uncertainty lies, and which granularity follows."""
    parts = [
        '<h2 class="title">How sure?</h2>',
        f'<p class="say">{html.escape(words.sure(trial.report))}.</p>',
    ]
    if model.map is not None:
        parts.append(figures.histogram(model.map.gran_reference, trial.report))
    parts.append('<p class="label">Granularity of the expert</p>')
    return "".join([*parts, figures.level_bars(model.tree, trial.report), figures.caption_bars(trial.report)])


def _connect(
    lab: Lab, tab: gr.Tab, controls: Controls, display: Display, sweep: SweepDisplay, queue: str
) -> None:
    model = lab.model

    def choose(task: str) -> gr.Slider:
        return gr.Slider(**strength_slider(Task(task)))

    def run(photo: str | None, task: str, strength: float, seed: float | None) -> Iterator[dict[Any, Any]]:
        try:
            for trial in lab.trials(photo, Task(task), float(strength), int(seed or 0)):
                updates: dict[Any, Any] = {
                    display.verdict: verdict_html(trial, Task(task), float(strength)),
                    display.sure: sure_html(model, trial),
                }
                if trial.restored:
                    updates[display.slider] = (trial.degraded, trial.restored)
                    updates[display.scores] = lab_figures.scores_html(trial.scores)
                yield updates
        except ValueError as error:
            yield {display.verdict: sorry(error)}

    def run_sweep(
        photo: str | None,
        task: str,
        seed: float | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> dict[Any, Any]:
        def tell(share: float) -> None:
            progress(share, desc="Sweeping")

        try:
            points = lab.sweep(photo, Task(task), int(seed or 0), tell)
        except ValueError as error:
            return {sweep.sentence: sorry(error)}
        told = [(p.strength, p.report["expert_name"], p.report.get("e_gran_percentile")) for p in points]
        updates: dict[Any, Any] = {
            sweep.sentence: f'<p class="say">{html.escape(words.swept(Task(task), told))}</p>',
            sweep.curves: gr.Plot(lab_figures.sweep_figure(model.tree, Task(task), points), visible=True),
        }
        if model.map is not None:
            way = lab_figures.trajectory_figure(model.map, model.tree, Task(task), points)
            updates[sweep.trajectory] = gr.Plot(way, visible=True)
        return updates

    settings: dict[str, Any] = {
        "api_visibility": "private",
        "concurrency_id": queue,
        "concurrency_limit": 1,
    }
    shown = [display.verdict, display.slider, display.scores, display.sure]
    inputs = [controls.photo, controls.task, controls.strength, controls.seed]
    quiet = {"show_progress": "hidden", "trigger_mode": "always_last"}
    gr.on(
        [tab.select, controls.photo.change, controls.strength.input, controls.seed.input],
        run, inputs, shown, **quiet, **settings,
    )  # fmt: skip
    controls.task.input(
        choose, controls.task, controls.strength, api_visibility="private", queue=False,
        show_progress="hidden",
    ).then(run, inputs, shown, show_progress="hidden", **settings)  # fmt: skip
    sweep.button.click(
        run_sweep,
        [controls.photo, controls.task, controls.seed],
        [sweep.sentence, sweep.curves, sweep.trajectory],
        show_progress="minimal",
        show_progress_on=[sweep.sentence],
        **settings,
    )


def sorry(error: ValueError) -> str:
    """A user's mistake where the verdict would stand."""
    return f'<div class="verdict bad"><p class="lead">{jobs.sorry(error)}</p></div>'
