"""The tab that shows one photo through several experts: those of its path, and any that a visitor adds."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gradio as gr
import torch

from unirestorer.demo.handlers import Handlers, Memory
from unirestorer.demo.hosting import jobs
from unirestorer.demo.photos import centre, read_photo
from unirestorer.demo.view import words
from unirestorer.demo.view.html import badges, error_html
from unirestorer.imaging import to_pil

if TYPE_CHECKING:
    from unirestorer.demo.page import Page

COMPARE_PX = 512  # side of the middle part that is compared, at its own pixels
AMPLIFIED = 4  # times, in the pictures of what an expert changed
EXTRA = 3  # experts that a visitor may add
INTRO = f"""<h2 class="title">The same photo, other experts</h2><p class="sub">The path that the router found,
coarse to fine, and up to {EXTRA} experts of your choice: what does the wrong one do? You see the middle of
the photo at its own pixels; zoom and drag move all pictures alike.</p>"""

# Zooming and panning move all panes alike: they share three variables of the element around them.
ZOOM = """
let z = 1, x = 0, y = 0, changed = false, from = null;
const panes = () => element.querySelector('.compare');
const clamp = (value) => Math.min(0, Math.max(1 - z, value));
const apply = () => {
  const root = panes();
  if (!root) return;
  x = clamp(x); y = clamp(y);
  root.style.setProperty('--z', z); root.style.setProperty('--x', x); root.style.setProperty('--y', y);
  root.classList.toggle('changed', changed);
  root.querySelector('[data-do=changed]')?.setAttribute('aria-pressed', String(changed));
};
const zoom = (factor) => {
  const next = Math.min(12, Math.max(1, z * factor));
  x = 0.5 - (0.5 - x) * next / z; y = 0.5 - (0.5 - y) * next / z; z = next;
};
element.addEventListener('click', event => {
  const action = event.target.closest('[data-do]')?.dataset.do;
  if (action === 'in') zoom(1.5);
  if (action === 'out') zoom(1 / 1.5);
  if (action === 'reset') { z = 1; x = 0; y = 0; }
  if (action === 'changed') changed = !changed;
  if (action) apply();
});
element.addEventListener('pointerdown', event => {
  const pane = event.target.closest('.pane');
  if (pane && z > 1) { from = {x: event.clientX, y: event.clientY, px: x, py: y, side: pane.clientWidth,
    height: pane.clientHeight}; pane.setPointerCapture(event.pointerId); event.preventDefault(); }
});
element.addEventListener('pointermove', event => {
  if (from) { x = from.px + (event.clientX - from.x) / from.side;
    y = from.py + (event.clientY - from.y) / from.height; apply(); }
});
for (const name of ['pointerup', 'pointercancel']) element.addEventListener(name, () => { from = null; });
element.addEventListener('keydown', event => {
  if (!event.target.closest('.pane')) return;
  const step = {ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1],
    ArrowDown: [0, -0.1]}[event.key];
  if (event.key === '+') zoom(1.5);
  else if (event.key === '-') zoom(1 / 1.5);
  else if (step && z > 1) { x += step[0]; y += step[1]; }
  else return;
  event.preventDefault(); apply();
});
watch('value', () => requestAnimationFrame(apply));
"""


def add(page: Page) -> None:
    """Add the tab to the page under construction."""
    with gr.Tab("Compare experts", id="compare") as tab, gr.Column(elem_classes="card"):
        gr.HTML(INTRO)
        extra = gr.Dropdown(
            words.expert_choices(page.model.tree),
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
            for compared in compare(page.handlers, memory, extra or []):
                yield panes_html(compared)
        except ValueError as error:
            yield error_html(jobs.sorry(error))

    gr.on(
        [tab.select, extra.input],
        inputs=[page.memory, extra],
        outputs=panes,
        api_visibility="private",
        trigger_mode="always_last",
        show_progress="minimal",
        **page.job(run),
    )


@dataclass(frozen=True)
class Compared:
    """One pane: the photo itself (`expert` "") or an expert's result, as files to show."""

    expert: str
    name: str
    picture: str
    difference: str = ""  # |result - photo|, amplified
    change: float = 0.0  # its mean before that, in grey levels of 255
    notes: tuple[str, ...] = ()


def compare(handlers: Handlers, memory: Memory, extra: Iterable[str]) -> Iterator[list[Compared]]:
    """The panes so far, after each expert: the photo, its path from coarse to fine, then `extra`.

    Raises ValueError for an unknown expert and for a photo that is no longer kept.
    """
    model, tree = handlers.model, handlers.model.tree
    route = memory.decision.route
    path = tree.expert_table[int(route.leaf)].tolist()
    added = [tree.expert_number(name) for name in extra]
    x = centre(read_photo(memory.photo), COMPARE_PX)
    panes = [Compared("", "your photo", handlers.write(to_pil(x), "photo"))]
    for expert in dict.fromkeys([*path, *added[:EXTRA]]):
        result = model.experts(x, torch.tensor([expert])).cpu()
        difference = (result - x).abs()
        panes.append(
            Compared(
                tree.expert_names[expert],
                words.expert_label(tree, expert),
                handlers.write(to_pil(result), "compared"),
                handlers.write(to_pil((AMPLIFIED * difference).clamp(0, 1)), "difference"),
                255 * float(difference.mean()),
                ("auto",) if expert == int(route.expert) else (),
            )
        )
        yield list(panes)


def panes_html(panes: list[Compared]) -> str:
    """All panes under one set of buttons."""
    if not panes:
        return '<p class="sub">Give a photo in the Restore tab first.</p>'
    buttons = "".join(
        f'<button type="button" data-do="{do}"{extra}>{text}</button>'
        for do, text, extra in (
            ("in", "Zoom in", ""),
            ("out", "Zoom out", ""),
            ("reset", "Whole picture", ""),
            ("changed", f"Show what each one changed ({AMPLIFIED} times as strong)", ' aria-pressed="false"'),
        )
    )
    figures = "".join(_pane(pane) for pane in panes)
    return (
        f'<div class="compare"><div class="tools" role="group" aria-label="All pictures">{buttons}</div>'
        f'<ul class="panes">{figures}</ul></div>'
    )


def _pane(pane: Compared) -> str:
    name = html.escape(pane.name)
    pictures = f'<img class="result" src="{_address(pane.picture)}" alt="{name}" draggable="false">'
    change = ""
    if pane.difference:
        pictures += (
            f'<img class="difference" src="{_address(pane.difference)}" alt="What {name} changed" '
            'draggable="false">'
        )
        change = f"<small>changes {pane.change:.1f} of 255 grey levels on average</small>"
    keys = f"{name}: arrow keys move, + and - zoom"
    return (
        f'<li><figure><div class="pane" tabindex="0" role="group" aria-label="{keys}">'
        f"{pictures}</div><figcaption><b>{name}</b> {badges(pane.notes)}{change}</figcaption></figure></li>"
    )


def _address(path: str) -> str:
    return html.escape(f"gradio_api/file={path}")
