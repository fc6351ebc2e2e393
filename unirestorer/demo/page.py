"""One page per model: what its tabs share, how they are put together, and the address that sets them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr
from gradio.utils import get_upload_folder

from unirestorer.demo.api import add_endpoints
from unirestorer.demo.examples import Example, find_examples
from unirestorer.demo.handlers import KEPT_SECONDS, Handlers
from unirestorer.demo.hosting.jobs import MODEL_QUEUE, Watch
from unirestorer.demo.lab import Spoiling
from unirestorer.demo.link import Link, page_paths, read_link
from unirestorer.demo.tabs import batch, card, compare, lab, lessons, restore
from unirestorer.demo.view import panels, theme, words
from unirestorer.pipeline import UniRestorer

STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")


@dataclass(frozen=True)
class Sidebar:
    tasks: gr.CheckboxGroup
    expert: gr.Dropdown
    reset: gr.Button


@dataclass
class Page:
    """A page under construction: its model, and the components that more than one tab knows.

    `suffix` ends the names of its endpoints; `restore` and `lab` are there once these tabs are.
    """

    blocks: gr.Blocks
    handlers: Handlers
    models: Sequence[UniRestorer]  # of all pages
    watch: Watch
    suffix: str
    examples: tuple[Example, ...]
    memory: gr.State = field(init=False)  # a `Memory` or None
    sidebar: Sidebar = field(init=False)
    to_lesson: gr.Button = field(init=False)
    tabs: gr.Tabs = field(init=False)
    restore: restore.RestoreTab = field(init=False)
    lab: lab.Controls = field(init=False)

    # What an event needs that runs without the model, at once.
    quiet: ClassVar[dict[str, Any]] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

    @property
    def model(self) -> UniRestorer:
        return self.handlers.model

    def job(self, function: Callable[..., Any]) -> dict[str, Any]:
        """What an event needs whose `function` runs the model: it waits in the one line, as a job."""
        return {"fn": self.watch.job(function), "concurrency_id": MODEL_QUEUE, "concurrency_limit": 1}

    def link(self, request: gr.Request) -> Link:
        """What the address of a visitor asks for."""
        return read_link(dict(request.query_params), self.model, len(self.examples))


def build_page(models: Sequence[UniRestorer], watch: Watch, *, ahead: bool = False) -> gr.Blocks:
    """The whole page, once per model: the first at the root, each other one under its name.

    The pages share one queue, whose jobs `watch` sees. With `ahead` the examples are restored at once, in a
    thread of their own. Serve it with `launch_options()`.
    """
    everyone = [Handlers(model, Path(get_upload_folder())) for model in models]
    blocks = gr.Blocks(
        title="UniRestorer", fill_width=True, delete_cache=(600, KEPT_SECONDS), analytics_enabled=False
    )
    examples = find_examples()
    for handlers, path in zip(everyone, page_paths([model.name for model in models]), strict=True):
        with blocks.route(path, f"/{path}", show_in_navbar=False) if path else blocks:
            _fill(Page(blocks, handlers, models, watch, f"_{path}" if path else "", examples))
    if ahead:

        def prepare() -> None:
            for handlers in everyone:
                several = handlers.model.mode == "mixed"
                handlers.prepare([example.path for example in examples if example.several == several])

        threading.Thread(target=prepare, name="examples").start()
    # The desk decides who may wait; without a size a Space with a lent GPU would let in one alone.
    return blocks.queue(max_size=sys.maxsize, api_open=False)


def launch_options() -> dict[str, Any]:
    """How the page is served: no telemetry, no other hosts, no tracebacks, no traces in the browser."""
    return {
        "theme": theme.make_theme(),
        "css_paths": STYLE,
        "head": f"<style>{theme.SHELL_STYLE}</style><script>{SCRIPT.read_text(encoding='utf-8')}</script>",
        "ssr_mode": False,
        "show_error": False,
        "run_history": False,
        "enable_monitoring": False,
        "footer_links": [],
        "max_file_size": "64mb",
    }


def _fill(page: Page) -> None:
    page.memory = gr.State(None, time_to_live=KEPT_SECONDS)
    page.sidebar = _sidebar(page.model, page.models)
    gr.HTML(panels.HEADER, elem_id="top")
    page.to_lesson = gr.Button("Back to the lesson", variant="primary", visible=False, elem_id="to-lesson")
    with gr.Tabs(elem_id="tabs") as page.tabs:
        page.restore = restore.add(page)
        page.lab = lab.add(page)
        compare.add(page)
        batch.add(page)
        lessons.add(page)
        card.add(page)
    _open_link(page)
    _follow_link(page)
    add_endpoints(page)
    page.blocks.load(None, js="() => window.unirestorerReady()")


def _sidebar(model: UniRestorer, models: Sequence[UniRestorer]) -> Sidebar:
    with gr.Sidebar(open=False, width=theme.SIDEBAR_PX, elem_id="sidebar"):
        gr.HTML(panels.SIDEBAR)
        tasks = gr.CheckboxGroup(
            [(words.first_upper(words.TASK_WORDS[task]), task.value) for task in model.ranges],
            label="What is wrong with the photo?",
            info="Experts for anything else are ruled out.",
            elem_id="tasks",
        )
        expert = gr.Dropdown(
            [("the router’s choice", ""), *words.expert_choices(model.tree)],
            value="",
            label="Force an expert",
            info="Overrules the router.",
            elem_id="expert",
        )
        reset = gr.Button("Start over", size="sm", elem_id="reset")
        gr.HTML(panels.model_line(model, models), elem_id="models")
    return Sidebar(tasks, expert, reset)


def _open_link(page: Page) -> None:
    """The address sets the page when it is opened."""
    sidebar, controls, photo = page.sidebar, page.lab, page.restore.photo

    def open_state(request: gr.Request) -> dict[Any, Any]:
        link = page.link(request)
        updates: dict[Any, Any] = {page.tabs: gr.Tabs(selected=link.tab)}
        if link.tasks:
            updates[sidebar.tasks] = [task.value for task in link.tasks]
        if link.expert:
            updates[sidebar.expert] = link.expert
        if link.task is not None:
            middle = controls.scales[link.task].trained(0.5)
            strength = middle if link.strength is None else link.strength
            updates |= controls.set(
                Spoiling(link.task, strength, others=link.others, backwards=link.backwards)
            )
        if link.seed:
            updates[controls.seed] = link.seed
        return updates

    def open_photo(request: gr.Request) -> str | None:
        # By itself: a component left out of a dict of updates is rebuilt without `photo_input`'s preprocess.
        example = page.link(request).example
        return None if example is None else page.handlers.keep(page.examples[example].path)

    opened = page.blocks.load(open_photo, None, photo, **page.quiet)
    # Not before: the empty photo of an address that names no example would take the carried one's place.
    opened.then(None, js="() => window.unirestorerCarried()", api_visibility="private")
    targets = [page.tabs, sidebar.tasks, sidebar.expert, controls.seed, *controls.parts]
    page.blocks.load(open_state, None, targets, **page.quiet)


def _follow_link(page: Page) -> None:
    """The address follows the page (see also page.js)."""
    sidebar, controls = page.sidebar, page.lab
    for component, name, value in (
        (sidebar.tasks, "tasks", "value.join('.')"),
        (sidebar.expert, "expert", "value"),
        (controls.task, "task", "value"),
        (controls.strength, "strength", "String(value)"),
        (controls.seed, "seed", "value ? String(value) : ''"),
        (controls.backwards, "backwards", "value ? '1' : ''"),
        *(
            (slider, task.value, f"value === {controls.scales[task].none:g} ? '' : String(value)")
            for task, slider in controls.others.items()
        ),
    ):
        follow = f"(value) => {{ window.unirestorerLink('{name}', {value}); }}"
        component.change(None, component, None, js=follow, api_visibility="private")
