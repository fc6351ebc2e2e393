"""Draws a checkpoint's curves.png from the figures of `python -m training evaluate`.

For *single*: what becomes of each degradation from almost none to strengths beyond the training; it takes the
groups single-mild, single-in, single-out and clean. For *mixed*: what steps of training are worth in experts
for clusters and in one for everything; it takes mixed-in and mixed-out, measured with `--longer`. The picture
is taken in Chromium.

    python -m training curves --checkpoint single
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from training.measure.browser import open_browser
from training.measure.evaluate import KEY
from training.measure.protocol import cases
from unirestorer.checkpoint import Checkpoint, find_checkpoint
from unirestorer.types import Task

GROUPS = ("single-mild", "single-in", "single-out")  # weakest strength first
UNDEGRADED = "clean/cbsd68"
LEVELS = (("ALL", "dot"), ("TYPE", "dash"), ("DEGREE", "solid"))
COLUMNS, SIZE = 4, (1500, 1300)
GREY, INK, BAND = "#64748b", "#0f172a", "rgba(100,116,139,0.25)"
KEY_LINES = (
    "shaded: strengths beyond the training",
    "log e_gran: mean and range;",
    "dotted: undegraded photos' mean",
)
LOWEST_DB = -5.0  # ALL ruins photos that are almost clean


def curves(measured: dict[str, Any]) -> go.Figure:
    """For each task, by strength: gain over the input (dB), load of the finest level (%) and log e_gran.

    `measured` holds the cases of a metrics.json. Raises ValueError when one is missing.
    """
    from unirestorer.demo.view.words import (
        TASK_WORDS,  # here, since the page's packages take seconds to import
    )

    for case in cases(*GROUPS, UNDEGRADED):
        if case.id not in measured or (case.tasks and "path_psnr" not in measured[case.id]):
            raise ValueError(f"{case.id}: not in metrics.json, measure it with `training evaluate` first")
    heights = [0.25, 0.1, 0.14]
    figure = make_subplots(
        7, COLUMNS, vertical_spacing=0.02, horizontal_spacing=0.045, row_heights=[*heights, 0.02, *heights]
    )
    for number, task in enumerate(Task):
        strengths = [measured[case.id] for case in cases(*GROUPS) if case.tasks == (task,)]
        within = sum(case.tasks == (task,) for case in cases(*GROUPS[:2]))
        for row, lines in enumerate((_gain(task, strengths), _load(strengths), _uncertainty(strengths))):
            place: dict[str, Any] = {"row": 1 + row + 4 * (number // COLUMNS), "col": 1 + number % COLUMNS}
            x = [f"{figures['strength']:g}" for figures in strengths]
            for line in lines:
                figure.add_scatter(x=x, **line, showlegend=number == 0 and "name" in line, **place)
            last = len(x) - 0.5
            figure.add_vrect(x0=within - 0.5, x1=last, fillcolor=BAND, line_width=0, layer="below", **place)
            figure.update_xaxes(type="category", showticklabels=row == 2, range=[-0.5, last], **place)
            if row == 0:
                figure.update_xaxes(title={"text": f"<b>{TASK_WORDS[task]}</b>"}, side="top", **place)
                figure.update_yaxes(range=[LOWEST_DB, 1 + max(max(line["y"]) for line in lines)], **place)
            elif row == 1:
                figure.update_yaxes(range=[-8, 108], tickvals=[0, 50, 100], **place)
            else:
                clean = measured[UNDEGRADED]["log_e_gran"]
                figure.update_yaxes(range=[-6.3, 0.3], **place)
                figure.add_hline(y=clean, line={"color": GREY, "dash": "dot"}, **place)
            if number % COLUMNS == 0:
                figure.update_yaxes(title=("gain (dB)", "finest level (%)", "log e_gran")[row], **place)
    corner: dict[str, Any] = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "top"}
    figure.add_annotation(
        text="<br>".join(KEY_LINES), x=0.785, y=0.31, **corner, align="left", showarrow=False
    )
    figure.update_layout(
        template="plotly_white",
        width=SIZE[0],
        height=SIZE[1],
        font={"size": 15, "color": INK},
        margin={"l": 60, "r": 15, "t": 50, "b": 40},
        legend={"x": 0.775, "y": 0.44, "yanchor": "top", "font": {"size": 16}},
    )
    return figure


def _gain(task: Task, strengths: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from unirestorer.demo.view.theme import TASK_COLOURS

    before = [figures["psnr"]["input"] for figures in strengths]

    def over_input(after: list[float]) -> list[float]:
        return [result - given for result, given in zip(after, before, strict=True)]

    lines: list[dict[str, Any]] = [
        {
            "y": over_input([figures["path_psnr"][level] for figures in strengths]),
            "name": f"{name} on the photo's own path",
            "mode": "lines",
            "line": {"color": TASK_COLOURS[task] if level else GREY, "dash": dash, "width": 2.5},
        }
        for level, (name, dash) in enumerate(LEVELS)
    ]
    stars = over_input([figures["psnr"]["auto"] for figures in strengths])
    look = {"symbol": "star", "size": 11, "color": INK}
    return [*lines, {"y": stars, "name": "auto mode, mean of the photos", "mode": "markers", "marker": look}]


def _load(strengths: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shares = [100 * figures["practical_load"][-1] for figures in strengths]
    return [{"y": shares, "mode": "lines+markers", "line": {"color": INK, "width": 2}}]


def _uncertainty(strengths: list[dict[str, Any]]) -> list[dict[str, Any]]:
    log_e_gran = [[value for value, _ in figures["uncertainty"]] for figures in strengths]  # photo by photo
    hidden = {"mode": "lines", "line": {"width": 0}}
    return [
        {"y": [max(photos) for photos in log_e_gran], **hidden},
        {"y": [min(photos) for photos in log_e_gran], **hidden, "fill": "tonexty", "fillcolor": BAND},
        {"y": [mean(photos) for photos in log_e_gran], "mode": "lines", "line": {"color": INK, "width": 2.5}},
    ]


def steps_curves(measured: dict[str, Any], experts: dict[str, Any]) -> go.Figure:
    """PSNR (dB) of "mixed" by steps of training, the mean of all mixtures within and beyond the training.

    `experts` holds the steps of each, as config.json does under training.experts. Raises ValueError when a
    case is missing, or was measured without `--longer`.
    """
    for case in cases("mixed-in", "mixed-out"):
        if "longer" not in measured.get(case.id, {}).get("psnr", {}):
            raise ValueError(f"{case.id}: measure it with `training evaluate --longer` first")
    total, steps = 0, []
    for level in range(3):
        total += experts[f"{level}-0"]["steps"]  # all of a level have the same
        steps.append(total)
    titles = ("within the trained strengths", "beyond them")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.08)
    for column, group in enumerate(("mixed-in", "mixed-out"), 1):
        mixtures = [measured[case.id] for case in cases(group)]
        path = [mean(figures["path_psnr"][level] for figures in mixtures) for level in range(3)]
        ways = ("longer", "auto", "oracle")
        psnr = {way: mean(figures["psnr"][way] for figures in mixtures) for way in ways}
        lines = (
            ("ALL, then the photo's own cluster and finer cluster", steps, path, "lines+markers", "circle"),
            ("ALL alone", steps[::2], [path[0], psnr["longer"]], "lines+markers", "square"),
            ("auto mode", steps[2:], [psnr["auto"]], "markers", "star"),
            ("oracle: the best expert of each path", steps[2:], [psnr["oracle"]], "markers", "diamond"),
        )
        for name, x, y, mode, symbol in lines:
            dash = "dot" if symbol == "square" else "solid"
            figure.add_scatter(
                x=x,
                y=y,
                name=name,
                mode=mode,
                showlegend=column == 1,
                row=1,
                col=column,
                line={"color": INK, "dash": dash, "width": 2.5},
                marker={"color": INK, "symbol": symbol, "size": 13 if mode == "markers" else 8},
            )
    figure.update_xaxes(title="steps of training on the way to the expert", rangemode="tozero")
    figure.update_yaxes(title="PSNR (dB)", col=1)
    figure.update_layout(
        template="plotly_white",
        width=SIZE[0],
        height=560,
        font={"size": 15, "color": INK},
        margin={"l": 60, "r": 15, "t": 40, "b": 60},
        legend={"orientation": "h", "y": -0.18, "font": {"size": 16}},
    )
    return figure


def take(figure: go.Figure, target: Path) -> None:
    """A PNG of the figure."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = open_browser(playwright)
        size: Any = {side: figure.layout[side] for side in ("width", "height")}
        page = browser.new_page(viewport=size)
        page.set_content(f'<body style="margin:0">{figure.to_html(full_html=False)}</body>')
        page.wait_for_selector(".scatterlayer .trace")
        page.screenshot(path=target)
        browser.close()
    Image.open(target).convert("P", palette=Image.Palette.ADAPTIVE).save(target, optimize=True)


# From the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `curves` on a command line."""
    parser.add_argument("--checkpoint", required=True, help="folder, name in checkpoints/ or hub id")


def run(arguments: argparse.Namespace) -> None:
    """Draw into the checkpoint's folder. Raises ValueError when something was not measured."""
    folder = find_checkpoint(arguments.checkpoint)
    opened = Checkpoint(folder)
    measured = json.loads((folder / "metrics.json").read_text()).get(KEY, {}).get("cases", {})
    if opened.mode == "mixed":
        figure = steps_curves(measured, opened.config["training"]["experts"])
    else:
        figure = curves(measured)
    target = folder / "curves.png"
    take(figure, target)
    sys.stdout.write(f"{target}: {target.stat().st_size // 1024} KiB\n")
