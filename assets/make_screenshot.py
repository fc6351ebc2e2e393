"""Takes README's pictures of the page in Chromium: `python -m assets.make_screenshot [TASK] [FOLDER]`.

Serves the page with the shipped checkpoint. page.png: a task's example and the task named; lab.png: the
degradation lab after a sweep over the strength of noise; sweep.webp: that sweep, played.
"""

import contextlib
import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from training.measure.browser import open_browser
from unirestorer.types import Task

ROOT = Path(__file__).parent.parent
SIZE = (1440, 1560)  # tall enough for the whole page
WIDTH = 1000  # of the animation, in pixels


def open_page(playwright: Playwright, url: str) -> tuple[Browser, Page]:
    browser = open_browser(playwright)
    page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
    page.set_default_timeout(120_000)
    page.goto(f"{url}/?__theme=light")
    page.wait_for_selector("#map .scatterlayer")
    return browser, page


def take_page(page: Page, task: Task, target: Path) -> None:
    """The whole page after a click on a task's example and on the task itself."""
    number = list(Task).index(task)
    page.click(f'#examples [data-example="{number}"]')
    page.wait_for_selector("#verdict .lead")
    page.locator("#tasks input").nth(number).check()
    page.wait_for_selector("#choice-slider img")
    save(page, target, full=False)


def take_lab(page: Page, target: Path) -> None:
    """The degradation lab after a sweep, with the sidebar closed."""
    page.get_by_role("tab", name="Degradation lab").click()
    page.click("#sidebar .toggle-button")
    page.wait_for_selector("#lab-slider img")
    page.get_by_label("noise", exact=True).check()
    page.wait_for_function("document.querySelector('#lab-verdict').innerText.includes('noise (')")
    page.click("#lab-sweep")
    page.wait_for_selector("#lab-trajectory .scatterlayer")
    page.set_viewport_size({"width": SIZE[0], "height": 900})
    save(page, target, full=True)


def take_sweep(page: Page, target: Path) -> None:
    """The steps of the lab's finished sweep, one after another, as an animation."""
    panel = page.locator("#sweep")
    steps = page.locator("#lab-player input")
    frames = []
    for step in range(int(steps.get_attribute("max") or 0) + 1):
        steps.fill(str(step))
        page.wait_for_timeout(500)
        frame = Image.open(io.BytesIO(panel.screenshot())).convert("RGB")
        size = (WIDTH, round(frame.height * WIDTH / frame.width))
        frames.append(frame.resize(size, Image.Resampling.LANCZOS))
    frames[0].save(
        target,
        save_all=True,
        append_images=frames[1:],
        duration=[600] * (len(frames) - 1) + [2500],
        loop=0,
        quality=70,
        method=6,
    )
    print(f"{target}: {len(frames)} steps, {target.stat().st_size // 1024} KiB")


def save(page: Page, target: Path, *, full: bool) -> None:
    """A PNG, once the plots stand still."""
    page.wait_for_timeout(4000)
    page.screenshot(path=target, full_page=full)
    Image.open(target).convert("RGB").save(target, optimize=True)
    print(f"{target}: {target.stat().st_size // 1024} KiB")


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of a page with the shipped checkpoint, served by a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port)}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def main() -> None:
    task = Task(sys.argv[1]) if len(sys.argv) > 1 else Task.DERAIN
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
    with served() as url, sync_playwright() as playwright:
        browser, page = open_page(playwright, url)
        take_page(page, task, folder / "page.png")
        take_lab(page, folder / "lab.png")
        take_sweep(page, folder / "sweep.webp")
        browser.close()


if __name__ == "__main__":
    main()
