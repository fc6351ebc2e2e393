"""How long the page lets a visitor wait, in Chromium: `python -m assets.time_page [JSON]`.

Times `python app.py` until it answers and `python -m unirestorer inspect` on one photo, each in new
processes, the first time not counted (it fills the file cache). Then serves the page with the shipped
checkpoint and times, after one warming visit: until the page can be used,
an example's answer (restored ahead), a step of the lab's slider until the route follows, and a 512 x 512
photo until both modes' results are shown. The last is set beside the model's own time in the same run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from assets.make_screenshot import ROOT, open_page, served
from unirestorer import Task, UniRestorer
from unirestorer.demo.examples import find_examples

ROUNDS = 5
SIDE = 512
COLD_ROUNDS = 3
WAITED = {  # until: seconds that nobody minds
    "python app.py answers": 12.0,
    "python -m unirestorer inspect answers": 7.0,
    "page usable": 3.0,
    "example answered": 0.3,
    "lab's route follows": 0.3,
    "photo of 512 x 512 in auto and instruction": 3.0,
}
CLICK_EXAMPLE = """number => new Promise(resolve => {
  const start = performance.now();
  document.querySelector(`#examples [data-example="${number}"]`).click();
  const look = () => {
    const pictures = [...document.querySelectorAll("#auto-slider img")];
    const loaded = pictures.length > 1 && pictures.every(picture => picture.complete && picture.naturalWidth);
    if (loaded && document.querySelector("#verdict .lead")) resolve(performance.now() - start);
    else requestAnimationFrame(look);
  };
  look();
})"""


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def start_page() -> float:
    start = time.perf_counter()
    with served():
        return time.perf_counter() - start


def start_inspect() -> float:
    command = [sys.executable, "-m", "unirestorer", "inspect", str(find_examples()[2].path)]
    return seconds(lambda: subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True))


def example(page: Page, number: int) -> float:
    """From the click on an example to its verdict and both loaded pictures, by the page's own clock."""
    page.click("#reset")
    page.wait_for_selector("#verdict .welcome")
    page.evaluate("window.scrollTo(0, 0)")
    return page.evaluate(CLICK_EXAMPLE, number) / 1000


def lab_step(page: Page) -> float:
    """From a key on the slider to the words that name the new strength."""
    slider = page.locator("#lab-strength input[type=range]")
    before = page.inner_text("#lab-verdict")
    slider.focus()

    def act() -> None:
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "before => document.querySelector('#lab-verdict').innerText !== before", arg=before
        )

    taken = seconds(act)
    page.wait_for_timeout(2500)  # the restored picture follows
    return taken


def both_modes(page: Page, photo: Path) -> float:
    """From the choice of a file to both results, with a task named."""
    page.click("#reset")
    page.wait_for_selector("#verdict .welcome")
    page.locator("#tasks input").nth(list(Task).index(Task.DENOISE)).check()

    def act() -> None:
        page.set_input_files("#photo input[type=file]", photo)
        page.wait_for_selector("#auto-slider img")
        page.wait_for_selector("#choice-slider img")

    return seconds(act)


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in WAITED}
    starts = {"python app.py answers": start_page, "python -m unirestorer inspect answers": start_inspect}
    for name, start in starts.items():
        taken[name] = [start() for _ in range(COLD_ROUNDS + 1)][1:]
    with tempfile.TemporaryDirectory() as folder, served() as url, sync_playwright() as playwright:
        browser, page = open_page(playwright, url)
        page.wait_for_timeout(20_000)  # the examples are restored ahead
        example(page, 0)
        for _ in range(ROUNDS):
            visit = browser.new_page()
            taken["page usable"].append(seconds(lambda visit=visit: opened(visit, url)))
            visit.close()
        for number in range(1, ROUNDS + 1):
            taken["example answered"].append(example(page, number))
        photos = [Path(folder) / f"{number}.png" for number in range(ROUNDS + 1)]
        for number, photo in enumerate(photos):
            with Image.open(find_examples()[2].path) as picture:
                picture.convert("RGB").resize((SIDE, SIDE)).rotate(60 * number).save(photo)
        both_modes(page, photos[0])
        taken["photo of 512 x 512 in auto and instruction"] = [both_modes(page, p) for p in photos[1:]]
        page.get_by_role("tab", name="Degradation lab").click()
        page.wait_for_selector("#lab-slider img")
        lab_step(page)
        taken["lab's route follows"] = [lab_step(page) for _ in range(ROUNDS)]
        browser.close()
        model = UniRestorer.from_pretrained("single", device="cpu")
        model.restore(photos[0])
        alone: list[float] = []
        for photo in photos[1:]:
            both = seconds(lambda p=photo: (model.restore(p), model.restore(p, tasks={Task.DENOISE})))
            alone.append(both)
    medians = {name: round(median(values), 3) for name, values in taken.items()}
    medians["the model alone, both modes"] = round(median(alone), 3)
    print("| until | median (s) | at most (s) |\n| --- | ---: | ---: |")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} | {WAITED.get(name, '')} |")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(medians, indent=1) + "\n")


def opened(page: Page, url: str) -> None:
    page.goto(f"{url}/?__theme=light")
    page.wait_for_selector("#examples [data-example]")
    page.wait_for_selector("#photo input[type=file]", state="attached")


if __name__ == "__main__":
    main()
