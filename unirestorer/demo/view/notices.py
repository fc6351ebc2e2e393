"""What a visitor is told who made a mistake, has to wait, or meets a fault of the server."""

from __future__ import annotations

import html
import re

from unirestorer.checkpoint import PartError


def roughly(seconds: float) -> str:
    """A wait as people say it: "a few seconds", "about 40 seconds", "about 3 minutes"."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {10 * round(seconds / 10):.0f} seconds"
    return f"about {seconds / 60:.0f} minutes"


def busy(waiting: int, seconds: float) -> str:
    """The queue is full."""
    return f"{waiting} jobs are waiting, and there is room for no more: try again in {roughly(seconds)}."


def too_many(jobs: int, who: str, seconds: float) -> str:
    """One visitor (`who`: "you", or "your network") has enough jobs for now."""
    return (
        f"{jobs} jobs of {who} are waiting or running, and others want their turn: "
        f"try again in {roughly(seconds)}."
    )


def stopping() -> str:
    """The server has been told to stop."""
    return "The server is about to restart: try again in a minute."


def out_of_time(seconds: float) -> str:
    """A job took longer than one visitor gets."""
    return f"this took longer than the {seconds:.0f} seconds that one job may take: make the photo smaller"


def fault() -> str:
    """Something failed that is not the visitor's mistake."""
    return "Something went wrong here, and it is not your mistake: try again, or another photo."


def no_memory() -> str:
    """The photo is too large for what is free."""
    return "There is not enough memory for this photo just now: try a smaller one."


def no_room() -> str:
    """The disk is full."""
    return "The server cannot store the photo just now: try again later."


def wrong_input() -> str:
    """A program sent what the endpoint does not take."""
    return "The inputs are not what this endpoint takes: gradio_api/info lists their names and types."


def complaint(error: ValueError) -> str:
    """A user's mistake, or an expert that cannot be had, as one sentence of plain text."""
    if isinstance(error, PartError):
        return "This expert cannot be loaded on the server just now: force another one, or try again later."
    text = re.sub(r"\s+", " ", str(error)).strip()[:240].rstrip(".")
    if text.startswith("image: "):
        text = text.removeprefix("image: ")
        text = re.sub(r"^got (.+?), expected (.+), ([^,]+)$", r"it is \1 (expected \2); \3", text)
        text = f"this photo cannot be used: {text}"
    return f"{text[:1].upper()}{text[1:]}."


def sorry(error: ValueError) -> str:
    """The same, safe as HTML."""
    return html.escape(complaint(error))
