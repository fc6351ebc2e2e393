"""The tab that compares experts on the photo of the Restore tab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from unirestorer.demo.handlers import Handlers, Memory
from unirestorer.demo.hosting import jobs
from unirestorer.demo.tabs.compare import EXTRA, ZOOM, compare, panes_html
from unirestorer.demo.view import words

INTRO = f"""<h2 class="title">The same photo, other experts</h2><p class="sub">The path that the router found,
coarse to fine, and up to {EXTRA} experts of your choice: what does the wrong one do? You see the middle of
the photo at its own pixels; zoom and drag move all pictures alike.</p>"""


def add_compare(handlers: Handlers, tab: gr.Tab, memory: gr.State, queue: str) -> None:
    """Fill the tab under construction and connect its events."""
    tree = handlers.model.tree
    choices = [(words.expert_label(tree, number), name) for number, name in enumerate(tree.expert_names)]
    with gr.Column(elem_classes="card"):
        gr.HTML(INTRO)
        extra = gr.Dropdown(
            choices,
            value=[],
            multiselect=True,
            max_choices=EXTRA,
            label="Other experts",
            elem_id="compare-extra",
        )
        panes = gr.HTML(panes_html([]), js_on_load=ZOOM, elem_id="compare")

    def run(memory: Memory | None, extra: list[str] | None) -> Iterator[str]:
        if memory is None:
            yield panes_html([])
            return
        try:
            for found in compare(handlers, memory, extra or []):
                yield panes_html(found)
        except ValueError as error:
            yield f'<div class="verdict bad"><p class="lead">{jobs.sorry(error)}</p></div>'

    settings: dict[str, Any] = {"api_visibility": "private", "concurrency_id": queue, "concurrency_limit": 1}
    gr.on(
        [tab.select, extra.input],
        run,
        [memory, extra],
        panes,
        trigger_mode="always_last",
        show_progress="minimal",
        **settings,
    )
