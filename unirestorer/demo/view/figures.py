"""The page's figures: the map (plotly), the uncertainty's histogram, bars (HTML that follows the theme)."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go

from unirestorer.degradation.recipe import DEGREES
from unirestorer.demo.view import theme, words
from unirestorer.demo.view.html import bars, probability_bar
from unirestorer.map import DegradationMap
from unirestorer.tree import DegradationTree
from unirestorer.types import Task

BINS = 36
LINE_COLOUR = "#64748B"
NO_TOOLS = ["toImage", "select2d", "lasso2d", "zoom2d", "pan2d", "autoScale2d"]  # of plotly's bar


def colour_by(tree: DegradationTree) -> tuple[str, ...]:
    """What the map may be coloured by, the usual first."""
    return ("group", "subgroup") if words.mixes_types(tree) else ("type", "degree", "finest expert")


def map_figure(map_: DegradationMap, tree: DegradationTree, by: str = "type") -> go.Figure:
    """The training DRs coloured by one of `colour_by`, and the tree drawn over them.

    Plain SVG markers: a few thousand draw at once, and WebGL is missing in too many classrooms.
    """
    figure = go.Figure()
    for name, colour, symbol, rows in _groups(map_, tree, by):
        figure.add_scatter(
            x=map_.xy[rows, 0],
            y=map_.xy[rows, 1],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 5.5, "opacity": 0.5},
            text=[html.escape(text) for text in map_.text[rows].tolist()],
            hovertemplate="%{text}<extra></extra>",
        )
    _draw_tree(figure, map_, tree)
    figure.update_layout(
        template="none",
        showlegend=False,
        dragmode=False,  # a finger scrolls the page; the buttons zoom
        hovermode="closest",
        margin={"l": 4, "r": 4, "t": 4, "b": 4},
        height=430,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"remove": NO_TOOLS, "orientation": "v", "bgcolor": "rgba(0,0,0,0)"},
        font={"size": 13},
    )
    for axis, update in enumerate((figure.update_xaxes, figure.update_yaxes)):
        low, high = map_.xy[:, axis].min(), map_.xy[:, axis].max()
        margin = 0.05 * float(high - low)  # room for the star at the border
        update(visible=False, range=[float(low) - margin, float(high) + margin])
    return figure


def _groups(map_: DegradationMap, tree: DegradationTree, by: str) -> list[tuple[str, str, str, np.ndarray]]:
    """(name, colour, symbol, rows) of the map's points; the symbol is always the task's or the cluster's."""
    if words.mixes_types(tree):
        return _clusters(map_, tree, by)
    groups = []
    for name, colour, symbol, rows in _tasks(map_):
        keys = _degrees(map_, rows) if by == "degree" else map_.leaf[rows]
        task = next((task for task, word in words.TASK_WORDS.items() if word == name), None)
        if by == "type" or (by == "degree" and task is None) or (by == "finest expert" and (keys < 0).all()):
            groups.append((name, colour, symbol, rows))
            continue
        shades = theme.node_colours(tree)
        for key in sorted(set(keys.tolist())):
            shade = _degree_colour(task, key) if by == "degree" else shades[tree.offsets[-1] + int(key)]
            groups.append((str(key), shade, symbol, rows[keys == key]))
    return groups


def _clusters(map_: DegradationMap, tree: DegradationTree, by: str) -> list[tuple[str, str, str, np.ndarray]]:
    """The same where tasks mix: by leaf ("subgroup"), else by the clusters right below ALL."""
    level = tree.levels - 1 if by == "subgroup" else min(1, tree.levels - 1)
    nodes = np.where(map_.leaf < 0, -1, tree.expert_table.numpy()[map_.leaf, level])
    shades = theme.node_colours(tree)
    groups = [("clean", theme.CLEAN_COLOUR, theme.CLEAN_SYMBOL, np.flatnonzero(nodes < 0))]
    for node in sorted(set(nodes[nodes >= 0].tolist())):
        rows = np.flatnonzero(nodes == node)
        cluster = theme.cluster_of(tree, int(map_.leaf[rows[0]]))
        symbol = theme.CLUSTER_SYMBOLS[cluster % len(theme.CLUSTER_SYMBOLS)]
        groups.append((tree.words(node), shades[node], symbol, rows))
    return [group for group in groups if len(group[3])]


def _degrees(map_: DegradationMap, rows: np.ndarray) -> np.ndarray:
    """Each point's recipe in words, without the strength."""
    return np.array([text.partition(" (")[0] for text in map_.text[rows].tolist()])


def _degree_colour(task: Task | None, degree: str) -> str:
    """The task's colour, lighter or darker by degree, mild to severe; as it is for an unknown degree."""
    if task is None:
        return theme.SEVERAL_COLOUR
    order = list(DEGREES[task][1])
    if task is Task.DEJPEG:  # named from low quality to high
        order.reverse()
    shades = theme.degree_colours(theme.TASK_COLOURS[task], len(order))
    return shades[order.index(degree)] if degree in order else theme.TASK_COLOURS[task]


def _tasks(map_: DegradationMap) -> list[tuple[str, str, str, np.ndarray]]:
    """(name, colour, symbol, rows) by task; what has several is a group of its own."""
    groups = []
    taken = np.zeros(len(map_.task), bool)
    for task in Task:
        rows = map_.task == task.value
        groups.append((words.TASK_WORDS[task], theme.TASK_COLOURS[task], theme.TASK_SYMBOLS[task], rows))
        taken |= rows
    clean = map_.task == "clean"
    groups.append(("clean", theme.CLEAN_COLOUR, theme.CLEAN_SYMBOL, clean))
    groups.append(("several", theme.SEVERAL_COLOUR, theme.SEVERAL_SYMBOL, ~(taken | clean)))
    return [
        (name, colour, symbol, np.flatnonzero(rows)) for name, colour, symbol, rows in groups if rows.any()
    ]


def _draw_tree(figure: go.Figure, map_: DegradationMap, tree: DegradationTree) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    for level in range(1, tree.levels):
        for index, parent in enumerate(tree.parents[level].tolist()):
            ends = [tree.offsets[level] + index, tree.offsets[level - 1] + parent]
            x += [*map_.center_xy[ends, 0].tolist(), None]
            y += [*map_.center_xy[ends, 1].tolist(), None]
    figure.add_scatter(
        x=x, y=y, mode="lines", name="tree", hoverinfo="skip", line={"color": LINE_COLOUR, "width": 1.2}
    )
    level_of = [tree.level_of(node)[0] for node in range(len(tree.expert_names))]
    labelled = min(1, tree.levels - 1)  # the types: few enough to be read
    named = [(node, tree.words(node)) for node, level in enumerate(level_of) if level == labelled]
    figure.add_scatter(
        x=map_.center_xy[:, 0],
        y=map_.center_xy[:, 1],
        mode="markers",
        name="centres",
        marker={
            "color": theme.node_colours(tree),
            "size": [16 - 9 * level / max(tree.levels - 1, 1) for level in level_of],
            "line": {"color": "white", "width": 1.5},
        },
        text=[html.escape(words.expert_label(tree, node)) for node in range(len(level_of))],
        hovertemplate="centre of %{text}<extra></extra>",
    )
    places = map_.center_xy[[node for node, _ in named]].tolist()
    texts = [name for _, name in named]
    if (map_.task == "clean").any():
        places.append(np.median(map_.xy[map_.task == "clean"], axis=0).tolist())
        texts.append("clean")
    sides = _sides(map_, places)
    if len(texts) > len(named):
        sides[-1] = "bottom center"  # amid the others: mild degradations lie all around
    figure.add_scatter(
        x=[place[0] for place in places],
        y=[place[1] for place in places],
        mode="markers+text",
        name="names",
        marker={"size": 18, "opacity": 0},  # keeps the words off the centres
        text=[f"<b>{_in_lines(text)}</b>" for text in texts],
        textposition=sides,
        hoverinfo="skip",
    )


def _in_lines(name: str) -> str:
    """A cluster's name as HTML, two degradations a line."""
    parts = [html.escape(part) for part in name.split(" + ")]
    lines = [" + ".join(parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return " +<br>".join(lines)


def _sides(map_: DegradationMap, places: list[list[float]]) -> list[str]:
    """Where each name stands beside its place: above, and near a border towards the middle of the map."""
    low, high = map_.xy[:, 0].min(), map_.xy[:, 0].max()
    across = [(x - low) / max(high - low, 1e-9) for x, _ in places]
    return [f"top {'right' if at < 0.1 else 'left' if at > 0.9 else 'center'}" for at in across]


def add_star(figure: go.Figure) -> None:
    """The marks of a visitor's photo, nowhere yet: page.js moves them to the photo's `star_place`.

    Two traces, the lines to its neighbours and the star. Moving them takes a fifth of drawing the map anew.
    """
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="lines",
        name="neighbours",
        hoverinfo="skip",
        line={"color": "#111827", "width": 1},
    )
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        name="your photo",
        marker={
            "symbol": "star",
            "size": 22,
            "color": theme.STAR_COLOUR,
            "line": {"color": "#111827", "width": 2},
        },
        hovertemplate="your photo<extra></extra>",
    )


def star_place(map_: DegradationMap, report: dict[str, Any]) -> list[dict[str, list[float | None]]]:
    """x and y of both traces of `add_star`: a line to each of the photo's neighbours, and the photo."""
    place = report["map"]
    ends = [[place["x"], place["y"]]]
    lines = [point for end in map_.xy[place["neighbors"]].tolist() for point in (*ends, end, [None, None])]
    return [{"x": [x for x, _ in points], "y": [y for _, y in points]} for points in (lines, ends)]


def histogram(reference: np.ndarray, report: dict[str, Any] | None = None) -> str:
    """The mean log e_gran of training photos as bars; with a `report`, its photo's place among them."""
    low, high = np.quantile(reference, [0.005, 0.995])
    value = None if report is None else report["log_e_gran"]
    low, high = low - 1e-6, high + 1e-6
    counts, edges = np.histogram(np.clip(reference, low, high), BINS, (low, high))
    tallest = counts.max()
    bars = "".join(
        f'<rect x="{i + 0.08:.2f}" width="0.84" y="{100 - 100 * count / tallest:.1f}" '
        f'height="{100 * count / tallest:.1f}"{_behind(edges[i], value)}/>'
        for i, count in enumerate(counts.tolist())
    )
    marker, label = "", "Uncertainty of training photos, from sure to shaky"
    if report is not None:
        place = 100 * float(np.clip((report["log_e_gran"] - low) / (high - low), 0, 1))
        side = " left" if place > 70 else ""
        marker = (
            f'<span class="marker{side}" style="left:{place:.1f}%"><b>★</b><span>your photo</span></span>'
        )
        label = words.sure(report)
    return (
        f'<div class="histogram"><div class="plot"><svg viewBox="0 0 {BINS} 100" preserveAspectRatio="none" '
        f'role="img" aria-label="{html.escape(label)}">{bars}</svg>{marker}</div>'
        '<div class="ends"><span>sure</span><span>training photos</span><span>shaky</span></div></div>'
    )


def _behind(edge: float, value: float | None) -> str:
    return ' class="behind"' if value is not None and edge <= value else ""


def level_bars(tree: DegradationTree, report: dict[str, Any] | None = None) -> str:
    """How likely each granularity is, the chosen one marked."""
    rows = []
    for level, name in enumerate(words.level_words(tree)):
        entry = None if report is None else report["levels"][level]
        chosen = report is not None and report["level"] == level
        expert = words.spoken(entry["name"]) if entry else ""
        rows.append(probability_bar(name, expert, entry["probability"] if entry else None, chosen=chosen))
    return f'<p class="label">Granularity: how narrow the expert is</p>{bars(rows)}'


def caption_bars(report: dict[str, Any] | None) -> str:
    """The captions that fit the photo best, and what they have to do with the verdict."""
    if report is None:
        return ""
    rows = [probability_bar("", caption["text"], caption["probability"]) for caption in report["captions"]]
    return (
        f'<p class="label">In words</p>{bars(rows, wide=True)}'
        f'<p class="sub after">{html.escape(words.captions_note(report))}</p>'
    )
