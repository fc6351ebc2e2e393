"""What the degradation lab draws: scores as a table, a sweep as curves, its way across the map."""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from unirestorer.demo.lab import Point, Score
from unirestorer.demo.scale import Scale
from unirestorer.demo.view import theme, words
from unirestorer.demo.view.figures import LINE_COLOUR, NO_TOOLS, map_figure
from unirestorer.demo.view.html import badges, table
from unirestorer.map import DegradationMap
from unirestorer.metrics import MAX_PSNR
from unirestorer.tree import DegradationTree
from unirestorer.types import Task

DASHES = ("dot", "dash", "solid")  # of the levels, coarse to fine
SYMBOLS = ("circle", "square", "diamond")
DARK = "#111827"
STAR: dict[str, Any] = {"color": theme.STAR_COLOUR, "line": {"color": DARK, "width": 1.5}}


def scores_html(scores: tuple[Score, ...]) -> str:
    """The table of every picture's agreement with the original."""
    if not scores:
        return ""
    rows = (_score_row(score) for score in scores)
    return (
        f'<p class="label">Against the original</p>{table("scores", ("expert", "PSNR", "SSIM", ""), rows)}'
        '<p class="sub after">PSNR says how close the pixels are, SSIM how alike the structures (at most 1): '
        "more is better.</p>"
    )


def _score_row(score: Score) -> str:
    best = ' class="best"' if "best" in score.notes else ""
    similarity = "" if math.isnan(score.ssim) else f"{score.ssim:.3f}"
    return (
        f'<tr{best}><th scope="row">{html.escape(score.name)}</th><td>{_decibels(score.psnr)}</td>'
        f"<td>{similarity}</td><td>{badges(score.notes)}</td></tr>"
    )


def _decibels(value: float) -> str:
    return "identical" if value >= MAX_PSNR else f"{value:.2f}{words.NBSP}dB"


@dataclass(frozen=True)
class Curve:
    """How a curve is drawn; without a `symbol` it has no marks."""

    name: str
    colour: str
    dash: str
    symbol: str | None = None
    legend: bool = True


def sweep_figure(tree: DegradationTree, scale: Scale, points: list[Point]) -> go.Figure:
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
    degraded = Curve("as degraded", LINE_COLOUR, "longdashdot")
    _line(figure, 1, points, [point.degraded for point in points], degraded)
    for level, name in enumerate(words.level_words(tree)):
        curve = _level_curve(scale.task, name, level, tree.levels)
        _line(figure, 1, points, [point.levels[level] for point in points], curve)
        share = [100 * point.report["levels"][level]["probability"] for point in points]
        _line(figure, 2, points, share, replace(curve, legend=False))
    _auto_stars(figure, points)
    uncertainty = Curve("uncertainty", theme.TASK_COLOURS[scale.task], "solid", "circle", legend=False)
    _line(figure, 3, points, [point.report.get("e_gran_percentile") for point in points], uncertainty)
    _mark(figure, scale, points)
    _lay_out(figure, scale, points)
    return figure


def _level_curve(task: Task, name: str, level: int, levels: int) -> Curve:
    """ALL is grey, finer levels have the task's colour."""
    place = min(level, 2) if levels <= 3 else round(2 * level / (levels - 1))
    colour = LINE_COLOUR if level == 0 else theme.TASK_COLOURS[task]
    return Curve(name, colour, DASHES[place], SYMBOLS[place])


def _line(figure: go.Figure, row: int, points: list[Point], y: list[Any], curve: Curve) -> None:
    figure.add_scatter(
        x=[point.strength for point in points],
        y=y,
        name=curve.name,
        mode="lines+markers" if curve.symbol else "lines",
        showlegend=curve.legend,
        line={"color": curve.colour, "dash": curve.dash, "width": 2},
        marker={"symbol": curve.symbol or "circle", "size": 6},
        hovertemplate=f"{html.escape(curve.name)}: %{{y:.1f}}<extra></extra>",
        row=row,
        col=1,
    )


def _auto_stars(figure: go.Figure, points: list[Point]) -> None:
    figure.add_scatter(
        x=[point.strength for point in points],
        y=[point.auto for point in points],
        mode="markers",
        name="auto",
        marker={"symbol": "star", "size": 14, **STAR},
        text=[html.escape(words.plain(point.report["expert_name"])) for point in points],
        hovertemplate="auto: %{text}, %{y:.1f} dB<extra></extra>",
        row=1,
        col=1,
    )


def _mark(figure: go.Figure, scale: Scale, points: list[Point]) -> None:
    changes = words.switches((point.strength, point.report["expert_name"]) for point in points)
    note: dict[str, Any] = {"annotation_text": "beyond training", "annotation_position": "top right"}
    band: dict[str, Any] = {"fillcolor": "rgba(100,116,139,0.16)", "line_width": 0}
    for row in (1, 2, 3):
        place: dict[str, Any] = {"row": row, "col": 1}
        figure.add_vline(x=scale.end, line={"color": theme.STAR_COLOUR, "width": 2.5}, name="here", **place)
        figure.add_vrect(x0=scale.edge, x1=scale.end, **band, **place, **(note if row == 1 else {}))
        for strength, _ in changes[1:]:
            look = {"color": LINE_COLOUR, "width": 1, "dash": "dash"}
            figure.add_vline(x=strength, line=look, **place)


def _lay_out(figure: go.Figure, scale: Scale, points: list[Point]) -> None:
    restored = [value for point in points for value in (point.auto, *point.levels)]
    low, high = min(*restored, points[-1].degraded), max(restored)
    figure.update_yaxes(range=[low - 1, min(high, MAX_PSNR) + 0.15 * (high - low) + 2], row=1, col=1)
    for row in (2, 3):
        figure.update_yaxes(range=[-4, 104], tickvals=[0, 50, 100], row=row, col=1)
    figure.update_yaxes(gridcolor="rgba(100,116,139,0.25)", zeroline=False, automargin=True)
    figure.update_xaxes(range=[scale.none, scale.end], showgrid=False, zeroline=False)
    figure.update_xaxes(title_text=words.strength_label(scale), row=3, col=1)
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
        modebar={"remove": NO_TOOLS},
    )


def trajectory_figure(
    map_: DegradationMap, tree: DegradationTree, scale: Scale, points: list[Point]
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
        marker={"size": [13, *[8] * (len(points) - 1)], **STAR},
        text=[f"{scale.unit}: {point.strength:.3g}" for point in points],
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=[places[-1][0]],
        y=[places[-1][1]],
        mode="markers",
        name="here",
        hoverinfo="skip",
        marker={"size": 22, "symbol": "star", **STAR},
    )
    return figure


def player_html(tree: DegradationTree, scale: Scale, points: list[Point]) -> str:
    """A button and a slider that walk through a sweep; each step carries its place and its words."""
    steps = []
    for point in points:
        report = point.report
        level = words.level_words(tree)[report["level"]]
        sentence = (
            f"{scale.unit} {point.strength:.3g}: {words.plain(report['expert_name'])} ({level}), "
            f"{_decibels(point.auto)}"
        )
        place = {axis: report["map"][axis] for axis in "xy"} if "map" in report else {}
        steps.append({"at": point.strength, "words": sentence, **place})
    data = html.escape(json.dumps(steps))
    last = html.escape(steps[-1]["words"])
    return (
        '<div class="player"><button type="button">Play</button>'
        f'<input type="range" min="0" max="{len(points) - 1}" value="{len(points) - 1}" step="1" '
        f'aria-label="Step of the sweep" aria-valuetext="{last}" '
        f'data-steps="{data}"><output>{last}</output></div>'
    )
