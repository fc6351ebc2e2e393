"""The tab of many photos, routed alone: who gets how many, and how evenly the levels are loaded."""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import gradio as gr

from unirestorer.degradation import Recipe, degree_words, draw_recipe
from unirestorer.demo.handlers import Handlers
from unirestorer.demo.hosting import jobs
from unirestorer.demo.lab import lab_photo
from unirestorer.demo.view import notices, words
from unirestorer.demo.view.html import bar, bars, error_html, scrolled, table
from unirestorer.imaging import as_file
from unirestorer.report import describe
from unirestorer.tree import DegradationTree

if TYPE_CHECKING:
    from unirestorer.demo.page import Page

Progress = Callable[[float], None]

LIMIT = 50  # photos at once
COLUMNS = (
    *("photo", "looks like", "finest branch", "granularity", "expert"),
    *("uncertainty percentile", "distance percentile"),
)

INTRO = f"""<h2 class="title">Many photos at once</h2><p class="sub">A mixture of experts is judged by how it
shares out the work. Drop up to {LIMIT} photos, or let the cup of coffee be degraded in {LIMIT}
ways, and see which experts get them. Only the router runs: nothing is restored here.</p>"""


def add(page: Page) -> None:
    """Add the tab to the page under construction."""
    with gr.Tab("Many photos", id="batch"), gr.Row(equal_height=True):
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
            vary = gr.Button(f"Degrade one photo in {LIMIT} ways", variant="primary", elem_id="batch-vary")
        with gr.Column(scale=7, min_width=320, elem_classes="card"):
            summary = gr.HTML('<p class="sub">The loads will appear here.</p>', elem_id="batch-summary")
            download = gr.DownloadButton("Table as CSV", size="sm", visible=False, elem_id="batch-csv")
            routes = gr.HTML(elem_id="batch-table")
    handlers = page.handlers

    def show(work: Callable[[Progress], list[Routed]], progress: gr.Progress) -> list[Any]:
        try:
            rows = work(lambda share: progress(share, desc="Routing"))  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            return [error_html(jobs.sorry(error)), gr.DownloadButton(visible=False), ""]
        tree = handlers.model.tree
        file = handlers.keep_bytes(to_csv(tree, rows), "routes.csv")
        return [summary_html(tree, rows), gr.DownloadButton(value=file, visible=True), table_html(tree, rows)]

    def route_given(
        files: list[str] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> list[Any]:
        shown = show(lambda advance: route_files(handlers, files or [], advance), progress)
        return [*shown, None]  # the area is free for the next ones

    def route_drawn(
        seed: float | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        return show(lambda advance: route_variants(handlers, None, int(seed or 0), advance), progress)

    outputs = [summary, download, routes]
    event: dict[str, Any] = {
        "api_visibility": "private",
        "show_progress": "minimal",
        "show_progress_on": [summary],
    }
    files.upload(inputs=files, outputs=[*outputs, files], **event, **page.job(route_given))
    vary.click(inputs=seed, outputs=outputs, **event, **page.job(route_drawn))


@dataclass(frozen=True)
class Routed:
    """One photo's name and its report, or what was wrong with it."""

    name: str
    report: dict[str, Any] | None
    error: str = ""


def route_files(handlers: Handlers, photos: Sequence[str], progress: Progress | None = None) -> list[Routed]:
    """The route of each photo's file; a bad file is told in its row and the others go on.

    Raises ValueError for none and for more than `LIMIT`.
    """
    if not photos:
        raise ValueError("no photo was given: choose some files")
    if len(photos) > LIMIT:
        raise ValueError(f"got {len(photos)} photos: give at most {LIMIT} at once")
    rows = []
    for number, photo in enumerate(photos):
        name = Path(photo).name
        try:
            rows.append(Routed(name, handlers.inspect(photo, [])))
        except ValueError as error:
            rows.append(Routed(name, None, notices.complaint(error)))
        if progress:
            progress((number + 1) / len(photos))
    return rows


def route_variants(
    handlers: Handlers, photo: str | None, seed: int, progress: Progress | None = None
) -> list[Routed]:
    """The route of one clean photo degraded in `LIMIT` ways, drawn as the model's training drew them.

    Raises ValueError for what is no photo and for a seed that cannot be.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"a seed is a whole number from 0 to 2^31 - 1, got {seed}")
    clean, model = lab_photo(photo), handlers.model
    rows = []
    for number in range(LIMIT):
        recipe = draw_recipe(seed * LIMIT + number, mode=model.mode)
        report = describe(model, model.inspect(as_file(recipe.apply(clean))))
        rows.append(Routed(recipe_words(recipe), report))
        if progress:
            progress((number + 1) / LIMIT)
    return rows


def recipe_words(recipe: Recipe) -> str:
    """ "heavy rain (120)", "dim light (1.5) and light noise (20)"."""
    return " and ".join(f"{degree_words(step)} ({step.strength:.3g})" for step in recipe.steps)


def loads(tree: DegradationTree, rows: Sequence[Routed]) -> tuple[list[float], list[float], float]:
    """Share of photos per level, mean probability per level, and the latter's deviation over mean (Eq. 8)."""
    reports = [row.report for row in rows if row.report]
    if not reports:
        return [0.0] * tree.levels, [0.0] * tree.levels, 0.0
    hard = [
        sum(report["level"] == level for report in reports) / len(reports) for level in range(tree.levels)
    ]
    soft = [
        fmean(report["levels"][level]["probability"] for report in reports) for level in range(tree.levels)
    ]
    return hard, soft, pstdev(soft) / fmean(soft)


def table_cells(tree: DegradationTree, rows: Sequence[Routed]) -> list[list[str]]:
    """A row of text per photo, in the order of `COLUMNS`."""
    return [_cells(tree, row) for row in rows]


def _cells(tree: DegradationTree, row: Routed) -> list[str]:
    report = row.report
    if report is None:
        return [row.name, row.error, *[""] * (len(COLUMNS) - 2)]
    return [
        row.name,
        report["captions"][0]["text"].removeprefix("a photo with ") if report["captions"] else "",
        words.spoken(report["leaves"][report["leaf"]]["name"]),
        words.level_words(tree)[report["level"]],
        words.spoken(report["expert_name"]),
        *(
            f"{report[key]:.0f}" if key in report else ""
            for key in ("e_gran_percentile", "distance_percentile")
        ),
    ]


def to_csv(tree: DegradationTree, rows: Sequence[Routed]) -> bytes:
    """The table for a spreadsheet. A text that one would run as a formula gets a quote before it."""
    text = io.StringIO()
    writer = csv.writer(text)
    for cells in (COLUMNS, *table_cells(tree, rows)):
        writer.writerow([f"'{cell}" if cell[:1] in "=+-@\t\r" and cell else cell for cell in cells])
    return text.getvalue().encode("utf-8-sig")


def summary_html(tree: DegradationTree, rows: Sequence[Routed]) -> str:
    """Loads of the levels and of the experts as bars, and σ/μ in words."""
    hard, soft, uneven = loads(tree, rows)
    routed = [row.report for row in rows if row.report]
    if not routed:
        return '<p class="say">None of these files is a photo.</p>'
    levels = bars(
        bar(name, "", share, f"{words.percent(share)} chosen, mean probability {words.percent(mean)}")
        for name, share, mean in zip(words.level_words(tree), hard, soft, strict=True)
    )
    counts = Counter(words.spoken(report["expert_name"]) for report in routed)
    experts = bars(
        bar("", name, count / len(routed), f"{count} of {len(routed)}")
        for name, count in counts.most_common()
    )
    return (
        f'<p class="say">{len(routed)} photo{"s" * (len(routed) != 1)} went to {len(counts)} of '
        f"{len(tree.expert_names)} experts. "
        f"How unevenly the granularities are used (σ/μ of their loads, Eq. 8 of the paper): "
        f"<b>{uneven:.2f}</b>, from 0 (all alike) to {(tree.levels - 1) ** 0.5:.2f} (one takes all).</p>"
        f'<div class="split"><div><p class="label">Granularities</p>{levels}</div>'
        f'<div><p class="label">Experts</p>{experts}</div></div>'
    )


def table_html(tree: DegradationTree, rows: Sequence[Routed]) -> str:
    """Every photo's route."""
    lines = (
        f'<tr><th scope="row">{html.escape(cells[0])}</th>'
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells[1:])}</tr>"
        for cells in table_cells(tree, rows)
    )
    return (
        '<p class="sub">Percentiles are among training photos: at 90 the estimate is shakier, or the photo '
        f"farther from known degradations, than with 90 % of them.</p>"
        f"{scrolled('Routes', table('routes', COLUMNS, lines))}"
    )
