"""Pieces of HTML that several parts of the page show. Names and sentences are escaped here, unless said."""

from __future__ import annotations

import html
from collections.abc import Iterable

from unirestorer.demo.view import words


def error_html(sentence: str) -> str:
    """A mistake where a verdict would stand; the sentence is safe already."""
    return f'<div class="verdict bad"><p class="lead">{sentence}</p></div>'


def bars(rows: Iterable[str], *, wide: bool = False) -> str:
    """Rows made by `bar` or `probability_bar`."""
    return f'<div class="bars{" wide" * wide}" role="list">{"".join(rows)}</div>'


def bar(title: str, name: str, share: float, value: str, *, chosen: bool = False) -> str:
    """A labelled bar of length `share` (0 to 1), with its value in words."""
    mark = '<span class="tick" aria-hidden="true">✓</span><span class="sr">chosen</span>' if chosen else ""
    title = f"<b>{html.escape(title)}</b> " if title else ""
    return (
        f'<div class="bar{" chosen" if chosen else ""}" role="listitem">'
        f'<span class="name">{title}{html.escape(name)}{mark}</span>'
        f'<span class="value">{html.escape(value)}</span>'
        f'<span class="track"><i style="width:{100 * share:.1f}%"></i></span></div>'
    )


def probability_bar(title: str, name: str, probability: float | None, *, chosen: bool = False) -> str:
    """A bar of a probability; an unknown one is a dash."""
    value = "–" if probability is None else words.percent(probability)
    return bar(title, name, probability or 0.0, value, chosen=chosen)


def badges(notes: Iterable[str]) -> str:
    return " ".join(f'<em class="badge">{html.escape(note)}</em>' for note in notes)


def table(kind: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    """A table of class `kind` from its columns' heads and from rows that are HTML already."""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in heads)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<table class="{kind}">{head}<tbody>{"".join(rows)}</tbody></table>'


def scrolled(label: str, content: str) -> str:
    """Wide content that scrolls by itself, by keyboard too."""
    label = html.escape(label)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{content}</div>'
