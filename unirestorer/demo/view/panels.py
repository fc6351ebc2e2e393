"""What each panel shows for a state of the page, as pure functions of the `View` and the model."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from unirestorer.demo.handlers import View
from unirestorer.demo.link import page_paths
from unirestorer.demo.view import figures, notices, words
from unirestorer.demo.view.html import error_html
from unirestorer.demo.view.tree import tree_html
from unirestorer.pipeline import UniRestorer

HEADER = """<header class="top"><svg viewBox="0 0 32 32" width="34" height="34" aria-hidden="true">
<path fill="none" stroke="currentColor" stroke-width="1.6"
 d="M6 16 L16 8 L26 4 M16 8 L26 12 M6 16 L16 24 L26 20 M16 24 L26 28"/>
<circle cx="6" cy="16" r="3.4" fill="#64748B"/><circle cx="16" cy="8" r="2.8" fill="#0072B2"/>
<circle cx="16" cy="24" r="2.8" fill="#D55E00"/><circle cx="26" cy="4" r="2.2" fill="#56B4E9"/>
<circle cx="26" cy="12" r="2.2" fill="#0072B2"/><circle cx="26" cy="20" r="2.2" fill="#E69F00"/>
<circle cx="26" cy="28" r="2.2" fill="#009E73"/></svg>
<div><h1>UniRestorer</h1><p>Restores a photo by first estimating what is wrong with it,
then asking one expert: a narrow one where that estimate is sure, a broad one where it is not.</p></div>
</header>"""

WELCOME = """<div class="welcome"><h2 class="title">Drop a photo, or pick an example</h2>
<p class="sub">{what}: you see it restored, and why it went to the expert that restored it.</p><ol>
<li><span class="number">1</span><b>Estimate</b>What degraded the photo?
It gets a place on a map of known degradations.</li>
<li><span class="number">2</span><b>Doubt</b>How sure is that estimate?
Less sure means a coarser, more forgiving expert.</li>
<li><span class="number">3</span><b>Choose</b>A tree of experts, from one for everything to one for
{finest}: just one of them restores.</li></ol></div>"""
SIDEBAR = """<h2 class="title">Instruction</h2>
<p class="sub">Leave all empty, and the router, which picks the expert for a photo, decides alone.</p>"""
HINT = "Tick a task or force an expert in the Instruction panel to see a second result beside this one."

NOTE = """A specialist restores best if the estimate is right and worst if it is wrong. The shakier the
estimate, the more it pays to ask a coarser expert, whom a small mistake does not hurt."""

TITLES = {
    "what": (
        "1",
        "What is it?",
        "Each mark is a training photo; near means degraded alike. The lines are the tree of experts, see 3.",
    ),
    "sure": ("2", "How sure?", "How uncertain the estimate is, and so how narrow an expert to ask."),
    "who": (
        "3",
        "Who restores it?",
        "Percentages: how likely the photo belongs to a branch. How far to the right to go, 2 decides. "
        "Click an expert to force it, click it again to let go.",
    ),
}


# Buttons (see page.js), since a link within the page would leave it: Gradio's pages have a base address.
WHY = " ".join(
    f'<button type="button" data-go="why-{key}">{title}</button>' for key, (_, title, _) in TITLES.items()
)


BESIDE = (
    '<p class="sub beside">The second result stands beside the first: '
    '<button type="button" data-go="results">look at both</button>.</p>'
)


@dataclass(frozen=True)
class Panels:
    """Everything the page shows for a view, apart from the photos themselves."""

    verdict: str
    auto_title: str
    choice_title: str
    choice_words: str
    hint: str
    what: str
    sure: str
    who: str
    timing: str


def draw(model: UniRestorer, view: View) -> Panels:
    """All panels. They explain the second result where there is one, else auto mode's."""
    auto = view.memory.auto.report if view.memory else view.decided
    choice = view.choice.report if view.choice else None
    report = choice or auto
    return Panels(
        verdict=_verdict(model, view, auto),
        auto_title=_title("Auto", auto) if auto else "",
        choice_title=_title("Forced" if view.expert else "Instruction", choice) if choice else "",
        choice_words=_choice_words(view, choice) if choice else "",
        hint=""
        if choice or not auto
        else f'<p class="hint">{"Restoring your choice …" if view.waiting else HINT}</p>',
        what=_what(model, auto),
        sure=_sure(model, report),
        who=_who(model, view, report, auto),
        timing=_timing(view),
    )


def draw_map(model: UniRestorer, by: str) -> go.Figure | None:
    """The map, coloured by one of `figures.colour_by`, or nothing where the model has no map."""
    if model.map is None:
        return None
    figure = figures.map_figure(model.map, model.tree, by)
    figures.add_star(figure)
    return figure


def panel_title(key: str) -> str:
    number, title, explanation = TITLES[key]
    return (
        f'<h2 class="title" id="why-{key}"><span class="number">{number}</span>{title}</h2>'
        f'<p class="sub">{explanation}</p>'
    )


def model_line(model: UniRestorer, models: Sequence[UniRestorer]) -> str:
    """Model and device in words, with a link to each other model's page, for the foot of the sidebar."""
    count = len(model.tree.expert_names)
    name = f"Model <b>{html.escape(model.name)}</b>: {count} experts. " if model.name else ""
    links = "".join(
        f'<a href="./{path}" data-model="{path}"{" aria-current=page" if other is model else ""}>'
        f"<b>{html.escape(other.name)}</b><span>{words.made_for(other.mode)}</span></a>"
        for other, path in _paths(models)
    )
    switch = f'<p class="label">Model set</p><nav aria-label="Model set">{links}</nav>'
    return f'{switch if len(models) > 1 else ""}<p class="device">{name}{words.device(model.device.type)}</p>'


def other_models(model: UniRestorer, models: Sequence[UniRestorer]) -> str:
    """What another model is made for, said below a result, with a link to its page."""
    several = model.mode == "mixed"
    asked = "Only one thing wrong with it" if several else "More than one thing wrong with it"
    links = [
        f'<a href="./{path}" data-model="{path}">the model <b>{html.escape(other.name)}</b></a>'
        for other, path in _paths(models)
        if other.mode != model.mode
    ]
    knows = "knows one degradation at a time" if several else "is made for several degradations at once"
    return f'<p class="hint">{asked}? Try {links[0]}, which {knows}.</p>' if links else ""


def _paths(models: Sequence[UniRestorer]) -> list[tuple[UniRestorer, str]]:
    return list(zip(models, page_paths([model.name for model in models]), strict=True))


def _verdict(model: UniRestorer, view: View, auto: dict[str, Any] | None) -> str:
    if view.error is not None:
        return error_html(notices.sorry(view.error))
    if auto is None:
        what = words.task_list(model.ranges).replace(" and ", " or ")
        several = model.mode == "mixed"
        return WELCOME.format(
            what=words.first_upper(f"several at once of {what}" if several else what),
            finest="a narrow family of mixtures" if several else "heavy rain alone",
        )
    doubt = words.doubt(auto)
    return (
        f'<div class="verdict"><p class="lead">{html.escape(words.looks_like(auto))}</p>'
        f"<p>{html.escape(words.took_over(auto))}</p>"
        + (f'<p class="doubt">{html.escape(doubt)}</p>' if doubt else "")
        + (f'<p class="at-work">{words.at_work(view.megapixels)}</p>' if view.decided else "")
        + f'<p class="why">Why? {WHY}</p></div>'
    )


def _title(mode: str, report: dict[str, Any]) -> str:
    name = html.escape(words.spoken(report["expert_name"]))
    return f'<h3 class="mode"><span class="chip">{mode}</span>restored by <b title="{name}">{name}</b></h3>'


def _choice_words(view: View, choice: dict[str, Any]) -> str:
    sentence = words.choice_sentence(choice, view.tasks, view.expert)
    if view.memory and not view.expert and view.memory.auto.report["expert"] == choice["expert"]:
        sentence += " Auto mode chose the same expert: the pictures are the same."
    return f'<p class="sub">{html.escape(sentence)}</p>'


def _what(model: UniRestorer, auto: dict[str, Any] | None) -> str:
    if auto is None:
        return '<p class="sub">Your photo will appear here as a star, joined to its nearest neighbours.</p>'
    star = ""
    if model.map is not None:  # where page.js puts the star
        star = f' data-star="{html.escape(json.dumps(figures.star_place(model.map, auto)))}"'
    return f'<p class="say"{star}>{html.escape(words.familiar(auto))}</p>{figures.caption_bars(auto)}'


def _sure(model: UniRestorer, report: dict[str, Any] | None) -> str:
    parts = [f'<p class="say">{html.escape(words.sure(report))}.</p>' if report else ""]
    if model.map is not None:
        parts.append(figures.histogram(model.map.gran_reference, report))
    parts.append(figures.level_bars(model.tree, report))
    parts.append(f'<p class="sub sure-note">{NOTE}</p>')
    return "".join(parts)


def _who(model: UniRestorer, view: View, report: dict[str, Any] | None, auto: dict[str, Any] | None) -> str:
    tasks = view.tasks if view.choice else ()
    tree = tree_html(model.tree, report, tasks, auto["expert"] if auto else "")
    return tree + (BESIDE if view.choice else "")


def _timing(view: View) -> str:
    if view.memory is None:
        return ""
    ahead = " (restored ahead)" if view.memory.ahead else ""
    lines = [f"Auto: {words.timing(view.memory.auto.report['seconds'])}{ahead}"]
    if view.choice:
        lines.append(f"Yours: {words.timing(view.choice.report['seconds'])}")
    width, height = view.memory.size
    return f'<p class="timing">{width} × {height} px. {"<br>".join(lines)}</p>'
