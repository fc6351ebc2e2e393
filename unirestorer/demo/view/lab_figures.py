"""What the degradation lab draws: scores as a table, a sweep as curves, its way across the map."""

from __future__ import annotations

import html
import json
import math
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from unirestorer.degradation import RANGES, strength_name
from unirestorer.demo.lab import Point, Score, span
from unirestorer.demo.view import theme, words
from unirestorer.demo.view.figures import LINE_COLOUR, map_figure
from unirestorer.map import DegradationMap
from unirestorer.metrics import MAX_PSNR
from unirestorer.tree import DegradationTree
from unirestorer.types import Task

DASHES = ("dot", "dash", "solid")  # of the levels, coarse to fine
SYMBOLS = ("circle", "square", "diamond")
DARK = "#111827"


def scores_html(scores: tuple[Score, ...]) -> str:
    """The table of every picture's agreement with the original."""
    if not scores:
        return ""
    rows = "".join(_score_row(score) for score in scores)
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("expert", "PSNR", "SSIM", ""))
    return (
        '<p class="label">Against the original</p>'
        f'<table class="scores"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        '<p class="sub after">PSNR says how close the pixels are, SSIM how alike the structures (at most 1): '
        "more is better.</p>"
    )


def _score_row(score: Score) -> str:
    best = ' class="best"' if "best" in score.notes else ""
    badges = " ".join(f'<em class="badge">{html.escape(note)}</em>' for note in score.notes)
    similarity = "" if math.isnan(score.ssim) else f"{score.ssim:.3f}"
    return (
        f'<tr{best}><th scope="row">{html.escape(score.name)}</th><td>{_decibels(score.psnr)}</td>'
        f"<td>{similarity}</td><td>{badges}</td></tr>"
    )


def _decibels(value: float) -> str:
    return "identical" if value >= MAX_PSNR else f"{value:.2f}{words.NBSP}dB"


def sweep_figure(tree: DegradationTree, task: Task, points: list[Point]) -> go.Figure:
    """PSNR of every level and of auto mode, level probabilities, e_gran's percentile among training photos.

    The band that training never saw is shaded; dashed verticals mark where the router changes its expert.
    """
    titles = (
        "Result: PSNR (dB)",
        "Granularity that the router asks for (%)",
        "Uncertainty (percentile of training photos)",
    )
    figure = make_subplots(
        3, 1, shared_xaxes=True, vertical_spacing=0.09, row_heights=[0.5, 0.25, 0.25], subplot_titles=titles
    )
    x = [point.strength for point in points]
    _line(figure, 1, x, [point.degraded for point in points], "as degraded", LINE_COLOUR, "longdashdot", None)
    for level, name in enumerate(words.level_words(tree)):
        look = _level_look(task, level, tree.levels)
        _line(figure, 1, x, [point.levels[level] for point in points], name, *look)
        share = [100 * point.report["levels"][level]["probability"] for point in points]
        _line(figure, 2, x, share, name, *look, legend=False)
    figure.add_scatter(
        x=x,
        y=[point.auto for point in points],
        mode="markers",
        name="auto",
        marker={
            "symbol": "star",
            "size": 14,
            "color": theme.STAR_COLOUR,
            "line": {"color": DARK, "width": 1.5},
        },
        text=[html.escape(words.plain(point.report["expert_name"])) for point in points],
        hovertemplate="auto: %{text}, %{y:.1f} dB<extra></extra>",
        row=1,
        col=1,
    )
    sure = [point.report.get("e_gran_percentile") for point in points]
    _line(figure, 3, x, sure, "uncertainty", theme.TASK_COLOURS[task], "solid", "circle", legend=False)
    _mark(figure, task, points)
    shown = [value for point in points for value in (point.auto, *point.levels)]
    low, high = min(*shown, points[-1].degraded), max(shown)
    figure.update_yaxes(range=[low - 1, min(high, MAX_PSNR) + 0.15 * (high - low) + 2], row=1, col=1)
    for row in (2, 3):
        figure.update_yaxes(range=[-4, 104], tickvals=[0, 50, 100], row=row, col=1)
    figure.update_yaxes(gridcolor="rgba(100,116,139,0.25)", zeroline=False, automargin=True)
    start, end = span(task)
    figure.update_xaxes(range=[start, end], showgrid=False, zeroline=False)
    figure.update_xaxes(title_text=words.strength_label(task), row=3, col=1)
    figure.update_layout(
        template="none",
        height=640,
        margin={"l": 36, "r": 12, "t": 30, "b": 120},
        dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 13},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": -0.14, "xanchor": "left", "yanchor": "top"},
        modebar={"remove": ["toImage", "select2d", "lasso2d", "zoom2d", "pan2d", "autoScale2d"]},
    )
    return figure


def _level_look(task: Task, level: int, levels: int) -> tuple[str, str, str]:
    """Colour, dash and symbol of a level's curves: ALL is grey, finer ones have the task's colour."""
    place = min(level, 2) if levels <= 3 else round(2 * level / (levels - 1))
    return (LINE_COLOUR if level == 0 else theme.TASK_COLOURS[task]), DASHES[place], SYMBOLS[place]


def _line(
    figure: go.Figure,
    row: int,
    x: list[float],
    y: list[Any],
    name: str,
    colour: str,
    dash: str,
    symbol: str | None,
    *,
    legend: bool = True,
) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        name=name,
        mode="lines+markers" if symbol else "lines",
        showlegend=legend,
        line={"color": colour, "dash": dash, "width": 2},
        marker={"symbol": symbol or "circle", "size": 6},
        hovertemplate=f"{html.escape(name)}: %{{y:.1f}}<extra></extra>",
        row=row,
        col=1,
    )


def _mark(figure: go.Figure, task: Task, points: list[Point]) -> None:
    low, high = RANGES["single"][task]["in"]
    start, end = span(task)
    edge = low if start > end else high
    changes = words.switches((point.strength, point.report["expert_name"]) for point in points)
    note: dict[str, Any] = {"annotation_text": "beyond training", "annotation_position": "top right"}
    for row in (1, 2, 3):
        place: dict[str, Any] = {"row": row, "col": 1}
        figure.add_vline(x=end, line={"color": theme.STAR_COLOUR, "width": 2.5}, name="here", **place)
        figure.add_vrect(
            x0=edge,
            x1=end,
            fillcolor="rgba(100,116,139,0.16)",
            line_width=0,
            **place,
            **(note if row == 1 else {}),
        )
        for strength, _ in changes[1:]:
            look = {"color": LINE_COLOUR, "width": 1, "dash": "dash"}
            figure.add_vline(x=strength, line=look, **place)


def trajectory_figure(
    map_: DegradationMap, tree: DegradationTree, task: Task, points: list[Point]
) -> go.Figure:
    """The sweep's way across the map, from the large circle (none) to the strongest, where the star is."""
    figure = map_figure(map_, tree)
    places = [(point.report["map"]["x"], point.report["map"]["y"]) for point in points]
    figure.add_scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        mode="lines+markers",
        name="sweep",
        line={"color": DARK, "width": 2.5},
        marker={
            "size": [13, *[8] * (len(points) - 1)],
            "color": theme.STAR_COLOUR,
            "line": {"color": DARK, "width": 1.5},
        },
        text=[f"{strength_name(task)}: {point.strength:.3g}" for point in points],
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=[places[-1][0]],
        y=[places[-1][1]],
        mode="markers",
        name="here",
        hoverinfo="skip",
        marker={
            "size": 22,
            "symbol": "star",
            "color": theme.STAR_COLOUR,
            "line": {"color": DARK, "width": 1.5},
        },
    )
    return figure


def player_html(tree: DegradationTree, task: Task, points: list[Point]) -> str:
    """A button and a slider that walk through a sweep; each step carries its place and its words."""
    steps = []
    for point in points:
        report = point.report
        level = words.level_words(tree)[report["level"]]
        told = (
            f"{strength_name(task)} {point.strength:.3g}: {words.plain(report['expert_name'])} ({level}), "
            f"{_decibels(point.auto)}"
        )
        place = {axis: report["map"][axis] for axis in "xy"} if "map" in report else {}
        steps.append({"at": point.strength, "words": told, **place})
    data = html.escape(json.dumps(steps))
    return (
        '<div class="player"><button type="button">Play</button>'
        f'<input type="range" min="0" max="{len(points) - 1}" value="{len(points) - 1}" step="1" '
        f'aria-label="Step of the sweep" aria-valuetext="{html.escape(steps[-1]["words"])}" '
        f'data-steps="{data}"><output>{html.escape(steps[-1]["words"])}</output></div>'
    )
