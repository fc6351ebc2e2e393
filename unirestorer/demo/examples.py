"""The example photos in `assets/examples` (drawn by `assets/make_examples.py`) as labelled thumbnails."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unirestorer.demo.photos import data_uri
from unirestorer.types import TASK_NOUNS

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "examples"
SEVERAL = ("rain-haze", "haze-noise", "dark-rain", "dark-snow")
THUMBNAIL_PX = (160, 120)


@dataclass(frozen=True)
class Example:
    """A photo and the one word that says what is wrong with it."""

    path: Path
    word: str

    @property
    def several(self) -> bool:
        """Whether it has more than one degradation."""
        return "+" in self.word


def find_examples(folder: Path = FOLDER) -> tuple[Example, ...]:
    """The examples in the order of `Task`, then the clean one, then those with several degradations; none
    where the package came without them.
    """
    names = [
        *((task.value, noun) for task, noun in TASK_NOUNS.items()),
        ("clean", "clean"),
        *((stem, stem.replace("-", " + ")) for stem in SEVERAL),
    ]
    examples = (Example(folder / f"{stem}.png", word) for stem, word in names)
    return tuple(example for example in examples if example.path.is_file())


def pick(examples: tuple[Example, ...], index: object) -> Example:
    """The example that a click named. Raises ValueError for anything but one of their numbers."""
    by_number = {str(i): example for i, example in enumerate(examples)}
    if str(index) not in by_number:
        raise ValueError("unknown example: choose one of those shown")
    return by_number[str(index)]


def thumbnails_html(examples: tuple[Example, ...], *, several: bool = False) -> str:
    """A button per example, those with `several` degradations or those with one first; the pictures travel
    inside the page.
    """
    if not examples:
        return ""
    order = sorted(enumerate(examples), key=lambda numbered: numbered[1].several != several)
    buttons = "".join(
        f'<button type="button" data-example="{i}" aria-label="Example photo: {html.escape(example.word)}">'
        f'<img alt="" src="{_thumbnail(example.path)}"><span>{html.escape(example.word)}</span></button>'
        for i, example in order
    )
    return f'<p class="label">Or try an example</p><div class="thumbs">{buttons}</div>'


def _thumbnail(path: Path) -> str:
    with Image.open(path) as image:
        image = image.convert("RGB")
    image.thumbnail(THUMBNAIL_PX)
    return data_uri(image)
