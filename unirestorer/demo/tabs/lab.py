"""The degradation lab's tab: its components and events; `demo/lab.py` decides, `view` shows."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from unirestorer.degradation.recipe import degree_words
from unirestorer.demo.hosting import jobs
from unirestorer.demo.hosting.gradio_patches import photo_input
from unirestorer.demo.lab import SWEEP_STEPS, Lab, Spoiling, Trial
from unirestorer.demo.scale import Scale
from unirestorer.demo.view import figures, lab_figures, words
from unirestorer.demo.view.html import error_html
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Task

if TYPE_CHECKING:
    from unirestorer.demo.page import Page

INTRO = """<h2 class="title">Degradation lab</h2><p class="sub">Take a clean photo, spoil it by a known
amount, and watch the router: since the original is known, every expert can be scored.</p>"""
SWEEP_INTRO = f"""<h2 class="title">From none to beyond training</h2><p class="sub">The same photo at
{words.counted(SWEEP_STEPS, "strength")}. Where the finest expert knows no such strength, a coarser one should
take over: see whether it does, and what it gains. To be quick, PSNR is that of the photo’s middle; the route
sees it whole.</p>"""

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
    """What the visitor may set; lessons and the address do so through `set`, the seed apart."""

    scales: dict[Task, Scale]
    photo: gr.Image
    task: gr.Radio
    strength: gr.Slider
    seed: gr.Number
    others: dict[Task, gr.Slider]  # more degradations at once
    backwards: gr.Checkbox

    @property
    def parts(self) -> list[Any]:
        """The components that `set` sets."""
        return [self.task, self.strength, self.backwards, *self.others.values()]

    def set(self, spoiling: Spoiling) -> dict[Any, Any]:
        """Updates of `parts`."""
        slider = strength_slider(self.scales[spoiling.task])
        others = {
            component: gr.Slider(
                value=spoiling.others.get(task, self.scales[task].none), visible=task is not spoiling.task
            )
            for task, component in self.others.items()
        }
        return {
            self.task: spoiling.task.value,
            self.strength: gr.Slider(**{**slider, "value": spoiling.strength}),
            self.backwards: spoiling.backwards,
            **others,
        }

    def read(self, values: dict[Any, Any]) -> Spoiling:
        """What the visitor has set, from the values of all components."""
        task = Task(values[self.task])
        others = {
            other: float(values[slider])
            for other, slider in self.others.items()
            if other is not task and values[slider] != self.scales[other].none
        }
        seed = int(values[self.seed] or 0)
        return Spoiling(task, float(values[self.strength]), seed, others, values[self.backwards])


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


def add(page: Page) -> Controls:
    """Add the tab to the page under construction."""
    lab = Lab(page.handlers)
    with gr.Tab("Degradation lab", id="lab") as tab:
        with gr.Row(equal_height=True):
            controls = _controls(lab.scales)
            display = _display()
        sweep = _sweep()
        _connect_trials(page, tab, lab, controls, display)
        _connect_sweep(page, lab, controls, sweep)
    return controls


# Components


def strength_slider(scale: Scale) -> dict[str, Any]:
    """The slider's settings for one degradation: its scale, a middling strength, and what was trained."""
    low, high = scale.limits
    return {
        "minimum": low,
        "maximum": high,
        "value": scale.trained(0.5),
        "step": scale.step,
        "label": words.strength_label(scale),
        "info": words.trained_range(scale),
    }


def _controls(scales: dict[Task, Scale]) -> Controls:
    first = next(iter(scales))
    with gr.Column(scale=4, min_width=320, elem_classes="card"):
        gr.HTML(INTRO)
        chosen = gr.Radio(
            [(words.TASK_WORDS[task], task.value) for task in scales],
            value=first.value,
            label="Spoil it with",
            elem_id="lab-task",
        )
        strength = gr.Slider(**strength_slider(scales[first]), elem_id="lab-strength", buttons=[])
        with gr.Accordion("More degradations at once", open=False, elem_id="lab-more"):
            others = {
                task: gr.Slider(
                    **{**strength_slider(scale), "value": scale.none, "info": words.trained(scale)},
                    visible=task is not first,
                    elem_id=f"lab-{task.value}",
                    buttons=[],
                )
                for task, scale in scales.items()
            }
            backwards = gr.Checkbox(
                label="Backwards",
                info=f"Else in the order of nature: {words.in_order(scales)}.",
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
    return Controls(scales, photo, chosen, strength, seed, others, backwards)


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


def verdict_html(trial: Trial, scales: dict[Task, Scale]) -> str:
    """What was done to the photo, and what the router thinks of it."""
    made = words.made_with(
        (
            (degree_words(step), step.strength, scales[step.task].beyond(step.strength))
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


# Events


def _connect_trials(page: Page, tab: gr.Tab, lab: Lab, controls: Controls, display: Display) -> None:
    """Every change degrades and restores anew."""

    def choose(task: str) -> list[gr.Slider]:
        return [
            gr.Slider(**strength_slider(lab.scales[Task(task)])),
            *(gr.Slider(visible=other.value != task) for other in controls.others),
        ]

    def run(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        try:
            for trial in lab.trials(values[controls.photo], controls.read(values)):
                updates: dict[Any, Any] = {
                    display.verdict: verdict_html(trial, lab.scales),
                    display.sure: sure_html(lab.model, trial),
                }
                if trial.restored:
                    updates[display.slider] = (trial.degraded, trial.restored)
                    updates[display.scores] = lab_figures.scores_html(trial.scores)
                yield updates
        except ValueError as error:
            yield {display.verdict: error_html(jobs.sorry(error))}

    others = list(controls.others.values())
    moved = [controls.strength, controls.seed, controls.backwards, *others]
    event: dict[str, Any] = {
        "inputs": {controls.photo, controls.task, *moved},
        "outputs": list(vars(display).values()),
        "api_visibility": "private",
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        **page.job(run),
    }
    gr.on([tab.select, controls.photo.change, *(component.input for component in moved)], **event)
    chosen = controls.task.input(choose, controls.task, [controls.strength, *others], **page.quiet)
    chosen.then(**event)


def _connect_sweep(page: Page, lab: Lab, controls: Controls, sweep: SweepDisplay) -> None:
    def run_sweep(
        values: dict[Any, Any],
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> dict[Any, Any]:
        def advance(share: float) -> None:
            progress(share, desc="Sweeping")

        try:
            spoiling = controls.read(values)
            points = lab.sweep(values[controls.photo], spoiling, advance)
        except ValueError as error:
            return {sweep.sentence: error_html(jobs.sorry(error))}
        model, scale = lab.model, lab.scales[spoiling.task]
        path = [(p.strength, p.report["expert_name"], p.report.get("e_gran_percentile")) for p in points]
        updates: dict[Any, Any] = {
            sweep.sentence: f'<p class="say">{html.escape(words.swept(spoiling.task, path))}</p>',
            sweep.player: gr.HTML(lab_figures.player_html(model.tree, scale, points), visible=True),
            sweep.curves: gr.Plot(lab_figures.sweep_figure(model.tree, scale, points), visible=True),
        }
        if model.map is not None:
            way = lab_figures.trajectory_figure(model.map, model.tree, scale, points)
            updates[sweep.trajectory] = gr.Plot(way, visible=True)
        return updates

    sweep.button.click(
        inputs={controls.photo, controls.task, controls.seed, *controls.parts},
        outputs=[sweep.sentence, sweep.player, sweep.curves, sweep.trajectory],
        api_visibility="private",
        show_progress="minimal",
        show_progress_on=[sweep.sentence],
        **page.job(run_sweep),
    )
