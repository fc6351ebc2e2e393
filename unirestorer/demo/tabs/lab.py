"""The degradation lab's components and events; `lab` decides, `lab_figures` and `words` show."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from unirestorer.degradation import RANGES
from unirestorer.degradation.recipe import degree_words
from unirestorer.demo.hosting import jobs
from unirestorer.demo.hosting.gradio_patches import photo_input
from unirestorer.demo.lab import NONE, Lab, Spoiling, Trial, beyond, known_tasks, span
from unirestorer.demo.view import figures, lab_figures, words
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Task

INTRO = """<h2 class="title">Degradation lab</h2><p class="sub">Take a clean photo, spoil it by a known
amount, and watch the router: since the original is known, every expert can be scored.</p>"""
SWEEP_INTRO = """<h2 class="title">From none to beyond training</h2><p class="sub">The same photo at thirteen
strengths. Where the finest expert knows no such strength, a coarser one should take over: see whether it
does, and what it gains. To be quick, PSNR is that of the photo’s middle; the route sees it whole.</p>"""

# Plays a sweep: moves the star over the map and the line over the curves, by itself or under the slider.
PLAYER = """
let timer = null;
const stop = () => { clearInterval(timer); timer = null; label(); };
const label = () => {
  const button = element.querySelector('button');
  if (button) button.textContent = timer ? 'Pause' : 'Play';
};
const show = () => {
  const range = element.querySelector('input');
  if (!range || !window.Plotly) return;
  const steps = JSON.parse(range.dataset.steps), step = steps[range.value];
  range.setAttribute('aria-valuetext', step.words);
  element.querySelector('output').textContent = step.words;
  const map = document.querySelector('#lab-trajectory .js-plotly-plot');
  const here = map?.data?.findIndex(trace => trace.name === 'here') ?? -1;
  if (here >= 0 && step.x !== undefined) Plotly.restyle(map, {x: [[step.x]], y: [[step.y]]}, [here]);
  const curves = document.querySelector('#lab-curves .js-plotly-plot');
  const change = {};
  curves?.layout?.shapes?.forEach((shape, i) => {
    if (shape.name === 'here') { change[`shapes[${i}].x0`] = step.at; change[`shapes[${i}].x1`] = step.at; }
  });
  if (Object.keys(change).length) Plotly.relayout(curves, change);
};
element.addEventListener('input', event => { if (event.target.matches('input')) { stop(); show(); } });
element.addEventListener('click', event => {
  if (!event.target.closest('button')) return;
  if (timer) return stop();
  const range = element.querySelector('input');
  if (range.value === range.max) range.value = 0;
  show();
  timer = setInterval(() => {
    range.value = Number(range.value) + 1;
    show();
    if (range.value === range.max) stop();
  }, 700);
  label();
});
watch('value', stop);
"""


@dataclass(frozen=True)
class Controls:
    photo: gr.Image
    task: gr.Radio
    strength: gr.Slider
    seed: gr.Number
    others: dict[Task, gr.Slider]  # more degradations at once
    backwards: gr.Checkbox


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
    player: gr.HTML
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
        "info": words.trained_range(task),
    }


def set_lab(controls: Controls, spoiling: Spoiling) -> dict[Any, Any]:
    """What sets the controls: updates of the components that `lab_parts` lists, the seed apart."""
    slider = strength_slider(spoiling.task)
    others = {
        component: gr.Slider(value=spoiling.others.get(one, NONE[one]), visible=one is not spoiling.task)
        for one, component in controls.others.items()
    }
    return {
        controls.task: spoiling.task.value,
        controls.strength: gr.Slider(**{**slider, "value": spoiling.strength}),
        controls.backwards: spoiling.backwards,
        **others,
    }


def lab_parts(controls: Controls) -> list[Any]:
    """The components that `set_lab` sets."""
    return [controls.task, controls.strength, controls.backwards, *controls.others.values()]


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
        with gr.Accordion("More degradations at once", open=False, elem_id="lab-more"):
            others = {
                one: gr.Slider(
                    **{**strength_slider(one), "value": NONE[one], "info": words.trained(one)},
                    visible=one is not tasks[0],
                    elem_id=f"lab-{one.value}",
                    buttons=[],
                )
                for one in tasks
            }
            backwards = gr.Checkbox(
                label="Backwards",
                info="Else in the order of nature: light, blur, noise, rain, snow, haze, then JPEG.",
                elem_id="lab-backwards",
            )
        seed = gr.Number(0, label="Seed of the random parts", precision=0, minimum=0, elem_id="lab-seed")
        photo = photo_input(
            sources=["upload", "clipboard"],
            label="Your own clean photo",
            height=190,
            buttons=[],
            elem_id="lab-photo",
            alt_text="The clean photo you gave",
        )
    return Controls(photo, task, strength, seed, others, backwards)


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
        player = gr.HTML(visible=False, js_on_load=PLAYER, elem_id="lab-player")
        with gr.Row():
            with gr.Column(scale=6, min_width=320):
                curves = gr.Plot(show_label=False, container=False, visible=False, elem_id="lab-curves")
            with gr.Column(scale=5, min_width=320):
                trajectory = gr.Plot(
                    show_label=False, container=False, visible=False, elem_id="lab-trajectory"
                )
    return SweepDisplay(button, sentence, player, curves, trajectory)


def verdict_html(trial: Trial) -> str:
    """What was done to the photo, and what the router thinks of it."""
    made = words.made_with(
        (
            (degree_words(step), step.strength, beyond(step.task, step.strength))
            for step in trial.recipe.steps
        ),
        trial.recipe.seed,
    )
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
    return "".join([*parts, figures.level_bars(model.tree, trial.report), figures.caption_bars(trial.report)])


def _connect(
    lab: Lab, tab: gr.Tab, controls: Controls, display: Display, sweep: SweepDisplay, queue: str
) -> None:
    model = lab.model

    def choose(task: str) -> list[gr.Slider]:
        return [
            gr.Slider(**strength_slider(Task(task))),
            *(gr.Slider(visible=one.value != task) for one in controls.others),
        ]

    def read(values: dict[Any, Any]) -> Spoiling:
        task = Task(values[controls.task])
        others = {
            one: float(values[slider])
            for one, slider in controls.others.items()
            if one is not task and values[slider] != NONE[one]
        }
        seed = int(values[controls.seed] or 0)
        return Spoiling(task, float(values[controls.strength]), seed, others, values[controls.backwards])

    def run(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        try:
            for trial in lab.trials(values[controls.photo], read(values)):
                updates: dict[Any, Any] = {
                    display.verdict: verdict_html(trial),
                    display.sure: sure_html(model, trial),
                }
                if trial.restored:
                    updates[display.slider] = (trial.degraded, trial.restored)
                    updates[display.scores] = lab_figures.scores_html(trial.scores)
                yield updates
        except ValueError as error:
            yield {display.verdict: sorry(error)}

    def run_sweep(
        values: dict[Any, Any],
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> dict[Any, Any]:
        def tell(share: float) -> None:
            progress(share, desc="Sweeping")

        try:
            spoiling = read(values)
            points = lab.sweep(values[controls.photo], spoiling, tell)
        except ValueError as error:
            return {sweep.sentence: sorry(error)}
        task = spoiling.task
        told = [(p.strength, p.report["expert_name"], p.report.get("e_gran_percentile")) for p in points]
        updates: dict[Any, Any] = {
            sweep.sentence: f'<p class="say">{html.escape(words.swept(task, told))}</p>',
            sweep.player: gr.HTML(lab_figures.player_html(model.tree, task, points), visible=True),
            sweep.curves: gr.Plot(lab_figures.sweep_figure(model.tree, task, points), visible=True),
        }
        if model.map is not None:
            way = lab_figures.trajectory_figure(model.map, model.tree, task, points)
            updates[sweep.trajectory] = gr.Plot(way, visible=True)
        return updates

    settings: dict[str, Any] = {"api_visibility": "private", "concurrency_id": queue, "concurrency_limit": 1}
    shown = [display.verdict, display.slider, display.scores, display.sure]
    others = list(controls.others.values())
    inputs = {controls.photo, controls.task, controls.strength, controls.seed, controls.backwards, *others}
    quiet = {"show_progress": "hidden", "trigger_mode": "always_last"}
    moved = [controls.strength, controls.seed, controls.backwards, *others]
    gr.on(
        [tab.select, controls.photo.change, *(component.input for component in moved)],
        run,
        inputs,
        shown,
        **quiet,
        **settings,
    )
    controls.task.input(
        choose,
        controls.task,
        [controls.strength, *others],
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    ).then(run, inputs, shown, show_progress="hidden", **settings)
    sweep.button.click(
        run_sweep,
        inputs,
        [sweep.sentence, sweep.player, sweep.curves, sweep.trajectory],
        show_progress="minimal",
        show_progress_on=[sweep.sentence],
        **settings,
    )


def sorry(error: ValueError) -> str:
    """A user's mistake where the verdict would stand."""
    return f'<div class="verdict bad"><p class="lead">{jobs.sorry(error)}</p></div>'
