"""Chromium, for taking pictures of what was drawn and of the page, and for testing the page."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a requirement of development alone
    from playwright.sync_api import Browser, Playwright

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def find_chromium() -> str | None:
    """The Chromium that $CHROMIUM names or the machine has."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def open_browser(playwright: Playwright) -> Browser:
    """A browser without a window, which the caller closes."""
    return playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
