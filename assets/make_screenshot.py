"""Takes README's picture of the page: `python -m assets.make_screenshot [TASK] [FILE]`, in Chromium.

Serves the page with the shipped checkpoint on a free port, clicks a task's example and names the task.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from unirestorer.types import Task

ROOT = Path(__file__).parent.parent
SIZE = (1440, 1560)                         # tall enough for the whole page
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def take(url: str, task: Task, target: Path) -> None:
    """The whole page after a click on a task's example and on the task itself, as a PNG of 256 colours."""
    number = list(Task).index(task)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        page.goto(f"{url}/?__theme=light")
        page.click(f'#examples [data-example="{number}"]')
        page.wait_for_selector("#verdict .lead", timeout=120_000)
        page.locator("#tasks input").nth(number).check()
        page.wait_for_selector("#choice-slider img", timeout=120_000)
        page.wait_for_timeout(4000)             # the plots' transitions
        page.screenshot(path=target)
        browser.close()
    Image.open(target).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    task = Task(sys.argv[1]) if len(sys.argv) > 1 else Task.DERAIN
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("page.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = os.environ | {"GRADIO_SERVER_PORT": str(port)}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=settings)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        take(url, task, target)
    finally:
        server.terminate()
        server.wait(20)
    print(f"{target}: {target.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
