"""The first tab: a photo, its result in auto mode and, beside it, the visitor's choice, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import plotly.graph_objects as go
from gradio.events import Dependency

from unirestorer.demo.api import sentence_errors
from unirestorer.demo.examples import Example, pick, thumbnails_html
from unirestorer.demo.handlers import KEPT_SECONDS, Memory, Shown, View
from unirestorer.demo.hosting import jobs
from unirestorer.demo.hosting.gradio_patches import photo_input
from unirestorer.demo.view import figures, panels
from unirestorer.pipeline import UniRestorer

if TYPE_CHECKING:
    from unirestorer.demo.page import Page

# A click on an element that carries data-NAME selects its value; the focus stays where it was after a redraw.
CLICKS = """
let last = null;
element.addEventListener('click', event => {
  const button = event.target.closest('[data-NAME]');
  if (button) { last = button.dataset.NAME; trigger('select', {index: 0, value: last}); }
});
watch('value', () => {
  if (last !== null && document.activeElement === document.body)
    element.querySelector(`[data-NAME="${last}"]`)?.focus();
});
"""


@dataclass(frozen=True)
class PhotoCard:
    photo: gr.Image
    stop: gr.Button
    thumbnails: gr.HTML


@dataclass(frozen=True)
class ResultColumn:
    column: gr.Column
    title: gr.HTML
    slider: gr.ImageSlider
    sentence: gr.HTML
    png: gr.DownloadButton


@dataclass(frozen=True)
class Results:
    verdict: gr.HTML
    auto: ResultColumn
    choice: ResultColumn
    below: gr.Column
    hint: gr.HTML
    divider: gr.Slider
    report: gr.DownloadButton
    timing: gr.HTML


@dataclass(frozen=True)
class Explanations:
    by: gr.Radio
    map: gr.Plot
    what: gr.HTML
    sure: gr.HTML
    who: gr.HTML


@dataclass(frozen=True)
class RestoreTab:
    """What other tabs may set or follow: the photo, and the event that ends with a result."""

    photo: gr.Image
    result: Dependency


def add(page: Page) -> RestoreTab:
    """Add the tab to the page under construction."""
    start = panels.draw(page.model, View())
    with gr.Tab("Restore", id="restore"):
        with gr.Row(equal_height=True, elem_id="first"):
            card = _photo_card(page.examples, several=page.model.mode == "mixed")
            results = _results(start, panels.other_models(page.model, page.models))
        with gr.Row(equal_height=True, elem_id="panels"):
            explanations = _explanations(page.model, start)
        result = _connect_model(page, card, Display(page, results, explanations))
        _connect_clicks(page, card, results, explanations)
    return RestoreTab(card.photo, result)


# Components


def _photo_card(examples: tuple[Example, ...], *, several: bool) -> PhotoCard:
    with gr.Column(scale=4, min_width=320, elem_classes="card"):
        gr.HTML('<h2 class="title">Your photo</h2>')
        photo = photo_input(
            sources=["upload", "clipboard", "webcam"],
            label="Photo",
            show_label=False,
            height=240,
            buttons=["fullscreen"],
            elem_id="photo",
            alt_text="The photo you gave",
            placeholder="Drop a photo here\n- or -\nClick to choose one",
        )
        stop = gr.Button("Stop", size="sm", elem_id="stop")
        html = thumbnails_html(examples, several=several)
        thumbnails = gr.HTML(html, js_on_load=CLICKS.replace("NAME", "example"), elem_id="examples")
    return PhotoCard(photo, stop, thumbnails)


def _results(start: panels.Panels, other_models: str) -> Results:
    with gr.Column(scale=9, min_width=320, elem_classes="card", elem_id="results"):
        verdict = gr.HTML(start.verdict, elem_id="verdict")
        with gr.Row(equal_height=False):
            auto = _result_column("auto", "Auto: the photo and the restored one")
            choice = _result_column("choice", "Yours: the photo and the restored one")
        with gr.Column(visible=False, elem_id="below") as below:
            with gr.Row(elem_id="hints"):
                hint = gr.HTML(elem_id="hint")
                gr.HTML(other_models, visible=bool(other_models), elem_id="other-models")
            with gr.Row(elem_id="tools"):
                divider = gr.Slider(
                    0,
                    100,
                    50,
                    step=1,
                    label="Divider: drag it in the picture, or use the arrow keys here",
                    elem_id="divider",
                    scale=3,
                    min_width=240,
                    buttons=[],
                )
                report = gr.DownloadButton(
                    "Report as JSON", size="sm", elem_id="report", scale=1, min_width=160
                )
            timing = gr.HTML(elem_id="timing")
    return Results(verdict, auto, choice, below, hint, divider, report, timing)


def _result_column(elem_id: str, label: str) -> ResultColumn:
    with gr.Column(min_width=280, visible=False, elem_id=elem_id) as column:
        title = gr.HTML()
        slider = gr.ImageSlider(
            format="png",
            type="filepath",
            interactive=False,
            label=label,
            show_label=False,
            max_height=320,
            buttons=["fullscreen"],
            elem_id=f"{elem_id}-slider",
        )
        png = gr.DownloadButton("Download PNG", size="sm", elem_id=f"{elem_id}-png")
        sentence = gr.HTML(elem_classes="sentence")
    return ResultColumn(column, title, slider, sentence, png)


def _explanations(model: UniRestorer, start: panels.Panels) -> Explanations:
    colour_by = figures.colour_by(model.tree)
    mapped = model.map is not None
    with gr.Column(scale=10, min_width=330, elem_classes="card"):
        gr.HTML(panels.panel_title("what"))
        by = gr.Radio(
            list(colour_by), value=colour_by[0], label="Colour by", visible=mapped, elem_id="map-by"
        )
        chart = gr.Plot(
            panels.draw_map(model, colour_by[0]),
            show_label=False,
            container=False,
            visible=mapped,
            elem_id="map",
        )
        what = gr.HTML(start.what, elem_id="what")
    with gr.Column(scale=7, min_width=280, elem_classes="card"):
        gr.HTML(panels.panel_title("sure"))
        sure = gr.HTML(start.sure, elem_id="sure")
    with gr.Column(scale=12, min_width=330, elem_classes="card"):
        gr.HTML(panels.panel_title("who"))
        who = gr.HTML(start.who, js_on_load=CLICKS.replace("NAME", "expert"), elem_id="who")
    return Explanations(by, chart, what, sure, who)


# Events


class Display:
    """The components that a state of the tab (`View`) sets."""

    def __init__(self, page: Page, results: Results, explanations: Explanations) -> None:
        self.page, self.results, self.explanations = page, results, explanations
        self.components: list[Any] = [
            page.memory,
            *(results.verdict, results.below, results.hint, results.report, results.timing),
            *vars(results.auto).values(),
            *vars(results.choice).values(),
            *(explanations.what, explanations.sure, explanations.who),
        ]

    def show(self, view: View) -> dict[Any, Any]:
        """Updates of the components."""
        results, explanations = self.results, self.explanations
        drawn = panels.draw(self.page.model, view)
        updates = {
            self.page.memory: view.memory,
            results.verdict: drawn.verdict,
            results.below: gr.Column(visible=view.memory is not None),
            results.hint: drawn.hint,
            results.report: view.json or None,
            results.timing: drawn.timing,
            explanations.what: drawn.what,
            explanations.sure: drawn.sure,
            explanations.who: drawn.who,
            **_result(results.choice, view.memory, view.choice, drawn.choice_title, drawn.choice_words),
        }
        if view.fresh:  # else auto's result stands already
            auto = view.memory.auto if view.memory else None
            updates |= _result(results.auto, view.memory, auto, drawn.auto_title, "")
        return updates


def _result(
    column: ResultColumn, memory: Memory | None, shown: Shown | None, title: str, sentence: str
) -> dict[Any, Any]:
    pair = (memory.before, shown.after) if memory and shown else None
    return {
        column.column: gr.Column(visible=pair is not None),
        column.title: title,
        column.slider: pair,
        column.sentence: sentence,
        column.png: shown.png if shown else None,
    }


def _connect_model(page: Page, card: PhotoCard, display: Display) -> Dependency:
    """A new photo, other tasks or another expert: run the model and redraw. An example that was restored
    ahead is shown at once. Returns the event that ends with a result.
    """
    handlers, sidebar = page.handlers, page.sidebar
    refused = gr.State(None, time_to_live=KEPT_SECONDS)  # the photo that the visitor was warned of

    def run(
        photo: str | None,
        tasks: list[str],
        expert: str | None,
        memory: Memory | None,
        warned: str | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> Iterator[dict[Any, Any]]:
        def advance(share: float) -> None:
            progress(share, desc="Restoring")

        for view in handlers.views(photo, tasks, expert or "", memory, advance):
            if view.error is not None and photo != warned:  # a replaced photo's change comes twice
                gr.Warning(jobs.sorry(view.error))
            yield {**display.show(view), refused: photo if view.error else None}

    @sentence_errors
    def choose_example(event: gr.SelectData, tasks: list[str], expert: str | None) -> dict[Any, Any]:
        photo = handlers.keep(pick(page.examples, event.value).path)
        view = handlers.prepared_view(photo, tasks, expert or "")
        return {card.photo: photo, **(display.show(view) if view else {})}

    result = gr.on(
        [card.photo.change, sidebar.tasks.change, sidebar.expert.change],
        inputs=[card.photo, sidebar.tasks, sidebar.expert, page.memory, refused],
        outputs=[*display.components, refused],
        api_visibility="private",
        trigger_mode="always_last",
        show_progress="minimal",
        show_progress_on=[display.results.verdict],
        **page.job(run),
    )
    outputs = [card.photo, *display.components]
    card.thumbnails.select(choose_example, [sidebar.tasks, sidebar.expert], outputs, **page.quiet)
    card.stop.click(None, cancels=[result], api_visibility="private")
    card.stop.click(lambda: None, None, card.photo, **page.quiet)  # whose result will not come
    return result


def _connect_clicks(page: Page, card: PhotoCard, results: Results, explanations: Explanations) -> None:
    """What sets other components, without the model."""

    def colour(by: str) -> go.Figure | None:
        return panels.draw_map(page.model, by)

    def choose_expert(event: gr.SelectData, expert: str | None) -> str:
        return "" if event.value == expert else str(event.value)

    def divide(at: float) -> tuple[Any, Any]:
        return gr.ImageSlider(slider_position=at), gr.ImageSlider(slider_position=at)

    def start_over() -> tuple[None, list[str], str, int]:
        return None, [], "", 50

    sidebar = page.sidebar
    explanations.by.change(
        colour,
        explanations.by,
        explanations.map,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
    )
    explanations.who.select(choose_expert, sidebar.expert, sidebar.expert, **page.quiet)
    everything = [card.photo, sidebar.tasks, sidebar.expert, results.divider]
    sidebar.reset.click(start_over, None, everything, **page.quiet)
    sliders = [results.auto.slider, results.choice.slider]
    results.divider.input(divide, results.divider, sliders, trigger_mode="always_last", **page.quiet)
