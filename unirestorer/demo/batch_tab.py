"""The tab that routes many photos at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from unirestorer.demo.handlers import Handlers
from unirestorer.demo.hosting import jobs
from unirestorer.demo.tabs import batch

INTRO = f"""<h2 class="title">Many photos at once</h2><p class="sub">A mixture of experts is judged by how it
shares out the work. Drop up to {batch.LIMIT} photos, or let the cup of coffee be degraded in {batch.LIMIT}
ways, and see which experts get them. Only the router runs: nothing is restored here.</p>"""


def add_batch(handlers: Handlers, queue: str) -> None:
    """Fill the tab under construction and connect its events."""
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=300, elem_classes="card"):
            gr.HTML(INTRO)
            files = gr.File(
                file_count="multiple",
                type="filepath",
                label="Photos to route",
                height=160,
                elem_id="batch-files",
            )
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="batch-seed")
            vary = gr.Button(
                f"Degrade one photo in {batch.LIMIT} ways", variant="primary", elem_id="batch-vary"
            )
        with gr.Column(scale=7, min_width=320, elem_classes="card"):
            summary = gr.HTML('<p class="sub">The loads will appear here.</p>', elem_id="batch-summary")
            download = gr.DownloadButton("Table as CSV", size="sm", visible=False, elem_id="batch-csv")
            table = gr.HTML(elem_id="batch-table")

    def show(
        work: Callable[[Callable[[float], None]], list[batch.Routed]], progress: gr.Progress
    ) -> list[Any]:
        try:
            rows = work(lambda share: progress(share, desc="Routing"))  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            sorry = f'<div class="verdict bad"><p class="lead">{jobs.sorry(error)}</p></div>'
            return [sorry, gr.DownloadButton(visible=False), ""]
        tree = handlers.model.tree
        file = handlers.keep_bytes(batch.to_csv(tree, rows), "routes.csv")
        return [
            batch.summary_html(tree, rows),
            gr.DownloadButton(value=file, visible=True),
            batch.table_html(tree, rows),
        ]

    def route_files(
        files: list[str] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> list[Any]:
        shown = show(lambda tell: batch.route_files(handlers, files or [], tell), progress)
        return [*shown, None]  # the area is free for the next ones

    def route_variants(
        seed: float | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        return show(lambda tell: batch.route_variants(handlers, None, int(seed or 0), tell), progress)

    settings: dict[str, Any] = {
        "api_visibility": "private",
        "concurrency_id": queue,
        "concurrency_limit": 1,
        "show_progress": "minimal",
        "show_progress_on": [summary],
    }
    outputs = [summary, download, table]
    files.upload(route_files, files, [*outputs, files], **settings)
    vary.click(route_variants, seed, outputs, **settings)
