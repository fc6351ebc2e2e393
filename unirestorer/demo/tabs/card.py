"""The tab of the model card: what the checkpoint is, what it was measured to do, and where it fails."""

from __future__ import annotations

import contextlib
import html
import json
import re
from typing import TYPE_CHECKING, Any

import gradio as gr

from unirestorer.demo.photos import data_uri, shrink
from unirestorer.demo.view import theme, words
from unirestorer.demo.view.html import scrolled, table
from unirestorer.imaging import load_image, to_pil
from unirestorer.pipeline import UniRestorer
from unirestorer.types import TASK_NOUNS, Task

if TYPE_CHECKING:
    from unirestorer.demo.page import Page

MODES = ("input", "all", "auto", "instruction", "oracle")
HEADS = ("input", "ALL", "auto", "instruction", "oracle")
BANDS = {
    "single-in": "Strengths that were trained",
    "single-out": "Beyond the trained strengths",
    "mixed-in": "Several at once, strengths that were trained",
    "mixed-out": "Several at once, beyond the trained strengths",
}
MEANING = (
    "PSNR says how close to the clean photo, in dB: more is better. ALL is the expert for everything alone, "
    "auto what the router chose, instruction the same with the degradation named, oracle the best "
    "expert on the photo’s own path."
)
PICTURE = re.compile(r"!\[([^\]]*)\]\(([\w-]+\.\w+)\)")  # a file beside the card
PICTURES, PICTURE_PX = 8, 1000  # how many at most, and their longest side
LETTERS = "LL is low light, H haze, N noise, B blur, R rain, S snow."


def add(page: Page) -> None:
    """Add the tab to the page under construction; pictures come once it is opened."""
    model = page.model
    with gr.Tab("Model card", id="card") as tab, gr.Column(elem_classes="card", elem_id="model-card"):
        gr.HTML(card_html(model))
        gr.Markdown(card_text(model))
        pictures = gr.HTML(elem_id="card-pictures")
    tab.select(lambda: card_pictures(model), None, pictures, api_visibility="private", queue=False)


def card_text(model: UniRestorer) -> str:
    """The checkpoint's own README as Markdown, without its first title; a sentence where there is none.

    A stranger's card gets no markup of its own but folded parts, and no pictures but those of
    `card_pictures`: others could be fetched from other hosts. What links to a file beside the card loses the
    link, which would lead nowhere from the page.
    """
    text = _readme(model)
    if not text:
        return "This checkpoint came without a model card."
    text = re.sub(r"\A\s*# .*\n", "", text)
    text = re.sub(r"!\[([^\]]*)\]\((?!https?:)[^)]*\)", r"(Picture: \1.)", text)
    text = re.sub(r"!\[([^\]]*)\]", r"[\1]", text)
    text = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"<(?=[A-Za-z/!?])(?!/?(?:details|summary)>)", "&lt;", text)


def card_pictures(model: UniRestorer) -> str:
    """The first pictures that the card shows from its own folder, decoded and made smaller, with their words.

    What is no picture, or lies elsewhere, is left out.
    """
    figures = []
    for caption, name in PICTURE.findall(_readme(model))[:PICTURES]:
        with contextlib.suppress(ValueError, OSError):
            image = shrink(to_pil(load_image(model.folder / name)), PICTURE_PX)
            alt = html.escape(caption)
            figures.append(
                f'<figure><img src="{data_uri(image)}" alt="{alt}"><figcaption>{alt}.</figcaption></figure>'
            )
    return "".join(figures)


def _readme(model: UniRestorer) -> str:
    path = model.folder / "README.md" if model.folder else None
    return path.read_text(encoding="utf-8", errors="replace") if path and path.is_file() else ""


def card_html(model: UniRestorer) -> str:
    """Title, size and the measured results, as far as the checkpoint has them."""
    tree = model.tree
    title = f"Model card: {html.escape(model.name)}" if model.name else "Model card"
    levels = ", ".join(str(len(names)) for names in tree.names)
    parts = [
        f'<h2 class="title">{title}</h2>'
        f'<p class="sub">{len(tree.expert_names)} experts in levels of {levels}; one of them restores a '
        f"photo. {words.device(model.device.type)}</p>"
    ]
    cases = measured_cases(model)
    if cases:
        parts.append(f'<p class="sub after">{MEANING}</p>')
    for band, name in BANDS.items():
        own = {id_.partition("/")[2]: case for id_, case in cases.items() if id_.startswith(f"{band}/")}
        if own:
            rows = (_row(case_name, case) for case_name, case in own.items())
            results = table("routes", ("case", "photos", *HEADS, "auto’s gain"), rows)
            parts.append(f'<p class="label">{name}: PSNR in dB</p>{scrolled("Measured results", results)}')
    if any(id_.startswith("mixed-") for id_ in cases):
        parts.append(f'<p class="sub">{LETTERS}</p>')
    return "".join(parts)


def measured_cases(model: UniRestorer) -> dict[str, dict[str, Any]]:
    """What `python -m training evaluate` stored with the checkpoint; nothing where that cannot be read."""
    path = model.folder / "metrics.json" if model.folder else None
    try:
        cases = json.loads(path.read_text())["evaluation"]["cases"] if path else {}
        return {str(id_): case for id_, case in cases.items() if {"input", "auto"} <= set(case["psnr"])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _row(name: str, case: dict[str, Any]) -> str:
    psnr = case["psnr"]
    task = next((task for task in Task if name.startswith(f"{task.value}-")), None)
    colour = theme.TASK_COLOURS[task] if task else "currentColor"
    cells = "".join(f"<td>{_number(psnr.get(mode))}</td>" for mode in MODES)
    label = name
    if task:
        label = f"{TASK_NOUNS[task]}, {name.removeprefix(f'{task.value}-')}"
    gain = round(float(psnr["auto"]) - float(psnr["input"]), 2) + 0.0  # never "-0.00"
    width = max(0.0, min(100.0, 100 * gain / 15))
    return (
        f'<tr><th scope="row">{html.escape(label)}</th><td>{_number(case.get("n"), 0)}</td>{cells}'
        f'<td class="gain"><span class="track"><i style="width:{width:.0f}%;background:{colour}"></i></span>'
        f"{gain:+.2f}</td></tr>"
    )


def _number(value: Any, digits: int = 2) -> str:  # noqa: ANN401 - whatever the file holds
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ""
