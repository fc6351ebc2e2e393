"""The page's components and the events between them; `panels` and `handlers` decide what they show."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go
from gradio.events import Dependency
from gradio.utils import get_upload_folder

from unirestorer.demo.api import add_endpoints, said
from unirestorer.demo.examples import Example, find_examples, pick, thumbnails_html
from unirestorer.demo.handlers import Handlers, Memory, Shown, View
from unirestorer.demo.hosting import jobs
from unirestorer.demo.hosting.gradio_patches import photo_input
from unirestorer.demo.lab import NONE, Lab, Spoiling, known_tasks
from unirestorer.demo.link import page_paths, read_link
from unirestorer.demo.tabs.batch import add_batch
from unirestorer.demo.tabs.card import card_html, card_pictures, card_text
from unirestorer.demo.tabs.compare import add_compare
from unirestorer.demo.tabs.lab import Controls, add_lab, lab_parts, set_lab, strength_slider
from unirestorer.demo.tabs.lessons import add_lessons
from unirestorer.demo.view import figures, panels, theme, words
from unirestorer.pipeline import UniRestorer
from unirestorer.tree import DegradationTree

MODEL_QUEUE = "model"  # every event that runs the model waits in this one line
QUEUE_LENGTH = 32
KEPT_SECONDS = 3600  # files and memories of a visitor

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
class Sidebar:
    tasks: gr.CheckboxGroup
    expert: gr.Dropdown
    reset: gr.Button


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


def build_page(*models: UniRestorer, ahead: bool = False) -> gr.Blocks:
    """The whole page, once per model: the first at the root, each other one under its name.

    The pages share one queue. With `ahead` the examples are restored at once, in a thread of their own.
    Serve it with `launch_options()`.
    """
    everyone = [Handlers(model, Path(get_upload_folder())) for model in models]
    page = gr.Blocks(
        title="UniRestorer", fill_width=True, delete_cache=(600, KEPT_SECONDS), analytics_enabled=False
    )
    for handlers, path in zip(everyone, page_paths([model.name for model in models]), strict=True):
        with page.route(path, f"/{path}", show_in_navbar=False) if path else page:
            _fill(page, handlers, models, suffix=f"_{path}" if path else "")
    if ahead:

        def prepare() -> None:
            for handlers in everyone:
                several = words.knows_several(handlers.model.tree)
                fitting = [example.path for example in find_examples() if example.several == several]
                handlers.prepare(fitting)

        threading.Thread(target=prepare, name="examples").start()
    return page.queue(max_size=QUEUE_LENGTH)


def _fill(page: gr.Blocks, handlers: Handlers, models: Sequence[UniRestorer], suffix: str) -> None:
    """One model's page. Its endpoints for programs end in `suffix`."""
    model = handlers.model
    examples = find_examples()
    start = panels.draw(model, View())
    memory = gr.State(None, time_to_live=KEPT_SECONDS)
    sidebar = _sidebar(model, models)
    gr.HTML(panels.HEADER, elem_id="top")
    return_ = gr.Button("Back to the lesson", variant="primary", visible=False, elem_id="to-lesson")
    with gr.Tabs(elem_id="tabs") as tabs:
        with gr.Tab("Restore", id="restore"):
            with gr.Row(equal_height=True, elem_id="first"):
                card = _photo_card(examples, words.knows_several(model.tree))
                results = _results(start, panels.other_models(model, models))
            with gr.Row(equal_height=True, elem_id="panels"):
                explanations = _explanations(model, start)
            running = _connect_model(handlers, examples, memory, sidebar, card, results, explanations)
        with gr.Tab("Degradation lab", id="lab") as lab_tab:
            lab = add_lab(Lab(handlers), lab_tab, MODEL_QUEUE)
        with gr.Tab("Compare experts", id="compare") as compare_tab:
            add_compare(handlers, compare_tab, memory, MODEL_QUEUE)
        with gr.Tab("Many photos", id="batch"):
            add_batch(handlers, MODEL_QUEUE)
        with gr.Tab("Lessons", id="lessons") as lessons_tab:
            add_lessons(
                page,
                handlers,
                lessons_tab,
                running,
                tabs,
                memory,
                card.photo,
                sidebar.tasks,
                lab,
                return_,
                examples,
            )
        with gr.Tab("Model card", id="card") as card_tab:
            with gr.Column(elem_classes="card", elem_id="model-card"):
                gr.HTML(card_html(model))
                gr.Markdown(card_text(model))
                pictures = gr.HTML(elem_id="card-pictures")
            card_tab.select(
                lambda: card_pictures(model), None, pictures, api_visibility="private", queue=False
            )
    _connect_clicks(sidebar, card, results, explanations)
    _connect_link(page, handlers, examples, sidebar, card, lab, tabs)
    add_endpoints(handlers, MODEL_QUEUE, suffix)
    page.load(None, js="() => window.unirestorerReady()")


def launch_options() -> dict[str, Any]:
    """How the page is served: no telemetry, no other hosts, no tracebacks, no traces in the browser."""
    return {
        "theme": theme.make_theme(),
        "css_paths": theme.STYLE,
        "head": theme.head(),
        "ssr_mode": False,
        "show_error": False,
        "run_history": False,
        "enable_monitoring": False,
        "footer_links": [],
        "max_file_size": "64mb",
    }


# Components


def _sidebar(model: UniRestorer, models: Sequence[UniRestorer]) -> Sidebar:
    known = [(task, words.TASK_WORDS[task]) for task in known_tasks(model.tree)]
    with gr.Sidebar(open=False, width=theme.SIDEBAR_PX, elem_id="sidebar"):
        gr.HTML(panels.SIDEBAR)
        tasks = gr.CheckboxGroup(
            [(word[0].upper() + word[1:], task.value) for task, word in known],
            label="What is wrong with the photo?",
            info="Experts for anything else are ruled out.",
            elem_id="tasks",
        )
        expert = gr.Dropdown(
            [("the router’s choice", ""), *_expert_choices(model.tree)],
            value="",
            label="Force an expert",
            info="Overrules the router.",
            elem_id="expert",
        )
        reset = gr.Button("Start over", size="sm", elem_id="reset")
        gr.HTML(panels.model_line(model, models), elem_id="models")
    return Sidebar(tasks, expert, reset)


def _expert_choices(tree: DegradationTree) -> list[tuple[str, str]]:
    return [(words.expert_label(tree, number), name) for number, name in enumerate(tree.expert_names)]


def _photo_card(examples: tuple[Example, ...], several: bool) -> PhotoCard:
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


def _connect_model(
    handlers: Handlers,
    examples: tuple[Example, ...],
    memory: gr.State,
    sidebar: Sidebar,
    card: PhotoCard,
    results: Results,
    explanations: Explanations,
) -> Dependency:
    """A new photo, other tasks or another expert: run the model and redraw. An example that was restored
    ahead is shown at once. Returns the event that ends with a result.
    """
    refused = gr.State(None, time_to_live=KEPT_SECONDS)  # the photo that the visitor was warned of

    def run(
        photo: str | None,
        tasks: list[str],
        expert: str | None,
        memory: Memory | None,
        warned: str | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> Iterator[dict[Any, Any]]:
        def tell(share: float) -> None:
            progress(share, desc="Restoring")

        for view in handlers.views(photo, tasks, expert or "", memory, tell):
            if view.error is not None and photo != warned:  # a replaced photo's change comes twice
                gr.Warning(jobs.sorry(view.error))
            yield {**show(view), refused: photo if view.error else None}

    @said
    def choose_example(event: gr.SelectData, tasks: list[str], expert: str | None) -> dict[Any, Any]:
        photo = handlers.keep(pick(examples, event.value).path)
        view = handlers.known(photo, tasks, expert or "")
        return {card.photo: photo, **(show(view) if view else {})}

    def show(view: View) -> dict[Any, Any]:
        drawn = panels.draw(handlers.model, view)
        updates = {
            memory: view.memory,
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

    outputs = [
        memory,
        refused,
        *(results.verdict, results.below, results.hint, results.report, results.timing),
        *vars(results.auto).values(),
        *vars(results.choice).values(),
        *(explanations.what, explanations.sure, explanations.who),
    ]
    running = gr.on(
        [card.photo.change, sidebar.tasks.change, sidebar.expert.change],
        run,
        [card.photo, sidebar.tasks, sidebar.expert, memory, refused],
        outputs,
        api_visibility="private",
        trigger_mode="always_last",
        concurrency_id=MODEL_QUEUE,
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=[results.verdict],
    )

    def colour(by: str) -> go.Figure | None:
        return panels.draw_map(handlers.model, by)

    explanations.by.change(
        colour,
        explanations.by,
        explanations.map,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
    )
    quiet: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    card.thumbnails.select(choose_example, [sidebar.tasks, sidebar.expert], [card.photo, *outputs], **quiet)
    card.stop.click(None, cancels=[running], api_visibility="private")
    card.stop.click(lambda: None, None, card.photo, **quiet)  # whose result will not come
    return running


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


def _connect_clicks(sidebar: Sidebar, card: PhotoCard, results: Results, explanations: Explanations) -> None:
    """What sets other components, without the model."""

    def choose_expert(event: gr.SelectData, expert: str | None) -> str:
        return "" if event.value == expert else str(event.value)

    def divide(at: float) -> tuple[Any, Any]:
        return gr.ImageSlider(slider_position=at), gr.ImageSlider(slider_position=at)

    def start_over() -> tuple[None, list[str], str, int]:
        return None, [], "", 50

    quiet: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    explanations.who.select(choose_expert, sidebar.expert, sidebar.expert, **quiet)
    everything = [card.photo, sidebar.tasks, sidebar.expert, results.divider]
    sidebar.reset.click(start_over, None, everything, **quiet)
    sliders = [results.auto.slider, results.choice.slider]
    results.divider.input(divide, results.divider, sliders, trigger_mode="always_last", **quiet)


def _connect_link(
    page: gr.Blocks,
    handlers: Handlers,
    examples: tuple[Example, ...],
    sidebar: Sidebar,
    card: PhotoCard,
    lab: Controls,
    tabs: gr.Tabs,
) -> None:
    """The address sets the page when it is opened, and follows it afterwards (see also page.js)."""

    def open_link(request: gr.Request) -> dict[Any, Any]:
        link = read_link(dict(request.query_params), handlers.model.tree, len(examples))
        updates: dict[Any, Any] = {tabs: gr.Tabs(selected=link.tab)}
        if link.tasks:
            updates[sidebar.tasks] = [task.value for task in link.tasks]
        if link.expert:
            updates[sidebar.expert] = link.expert
        if link.task is not None:
            middling = strength_slider(link.task)["value"]
            strength = middling if link.strength is None else link.strength
            updates |= set_lab(
                lab, Spoiling(link.task, strength, others=link.others, backwards=link.backwards)
            )
        if link.seed:
            updates[lab.seed] = link.seed
        return updates

    def open_photo(request: gr.Request) -> str | None:
        # By itself: a component left out of a dict of updates is rebuilt without `photo_input`'s preprocess.
        example = read_link(dict(request.query_params), handlers.model.tree, len(examples)).example
        return None if example is None else handlers.keep(examples[example].path)

    quiet: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    opened = page.load(open_photo, None, card.photo, **quiet)
    # Not before: the empty photo of an address that names no example would take the carried one's place.
    opened.then(None, js="() => window.unirestorerCarried()", api_visibility="private")
    targets = [tabs, sidebar.tasks, sidebar.expert, lab.seed, *lab_parts(lab)]
    page.load(open_link, None, targets, **quiet)
    for component, name, value in (
        (sidebar.tasks, "tasks", "value.join('.')"),
        (sidebar.expert, "expert", "value"),
        (lab.task, "task", "value"),
        (lab.strength, "strength", "String(value)"),
        (lab.seed, "seed", "value ? String(value) : ''"),
        (lab.backwards, "backwards", "value ? '1' : ''"),
        *(
            (slider, one.value, f"value === {NONE[one]:g} ? '' : String(value)")
            for one, slider in lab.others.items()
        ),
    ):
        follow = f"(value) => {{ window.unirestorerLink('{name}', {value}); }}"
        component.change(None, component, None, js=follow, api_visibility="private")
