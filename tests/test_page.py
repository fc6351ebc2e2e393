"""The page in a real browser and its endpoints through gradio_client, on a server of its own."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_tiny_checkpoint
from PIL import Image

from training.measure.browser import find_chromium, open_browser

ROOT = Path(__file__).parent.parent
WIDE_TABLE = f"{'| column ' * 12}|\n{'| --- ' * 12}|\n{'| measured ' * 12}|"
FOLDED_CARD = f"<!-- results -->\n<details>\n<summary>Tables</summary>\n\n{WIDE_TABLE}\n\n</details>\n"
SERIOUS = {"serious", "critical"}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not find_chromium(), reason="no Chromium: name one with CHROMIUM=/path"),
]


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`python app.py` with two models, as a visitor of the repository starts it."""
    mixed = make_tiny_checkpoint(tmp_path_factory.mktemp("second") / "tiny-mixed", mixed=True)
    (mixed / "README.md").write_text(FOLDED_CARD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "UNIRESTORER_CHECKPOINT": f"{tiny_checkpoint},{mixed}",
        "UNIRESTORER_DEVICE": "cpu",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio")),
    }
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=os.environ | settings, stdout=output, stderr=output
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = open_browser(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    from gradio_client import Client

    return Client(url, verbose=False)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    return make_photo(tmp_path / "photo.png", 0)


def make_photo(path: Path, seed: int) -> str:
    noise = np.random.default_rng(seed).integers(0, 60, (120, 160, 3))
    ramp = np.linspace(0, 190, 160)[None, :, None]
    Image.fromarray((noise + ramp).astype(np.uint8)).save(path)
    return str(path)


class Visit:
    """A page in a browser context of its own, and what went wrong on it."""

    def __init__(
        self,
        browser: Any,
        url: str,
        size: tuple[int, int] = (1440, 1000),
        dark: bool = False,
        query: str = "",
        shown: str = "#map .scatterlayer",
    ) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.problems.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("request", lambda request: self._check(request.url, url))
        self.page.goto(f"{url}/?__theme={'dark' if dark else 'light'}{query}")
        self.page.wait_for_selector(shown, state="attached")
        self.page.wait_for_selector("#sidebar .toggle-button[aria-expanded]", state="attached")

    def _check(self, request: str, url: str) -> None:
        if not request.startswith((url, "data:", "blob:")):
            self.problems.append(f"request to {request}")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *raised: object) -> None:
        self.context.close()
        if raised[0] is None:
            assert self.problems == []

    def upload(self, photo: str) -> None:
        self.page.set_input_files("#photo input[type=file]", photo)
        self.page.wait_for_selector("#auto-slider img")
        self.page.wait_for_selector("#verdict .lead")

    def download(self, button: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.click(button)
        return Path(download.value.path()).read_bytes()

    def serious_findings(self) -> list[str]:
        from axe_playwright_python.sync_playwright import Axe

        violations = Axe().run(self.page).response["violations"]
        return [
            f"{finding['id']}: {node['html'][:200]}: {node['failureSummary'][:300]}"
            for finding in violations
            if finding["impact"] in SERIOUS
            for node in finding["nodes"]
        ]


def pixels(data: bytes | str, tmp_path: Path) -> np.ndarray:
    if isinstance(data, bytes):
        path = tmp_path / "downloaded.png"
        path.write_bytes(data)
        data = str(path)
    with Image.open(data) as image:
        return np.asarray(image)


def test_a_photo_is_restored_in_both_modes(
    browser: Any, url: str, client: Any, photo: str, tmp_path: Path
) -> None:
    from gradio_client import handle_file

    with Visit(browser, url) as visit:
        page = visit.page
        visit.upload(photo)
        assert "took over" in page.inner_text("#verdict")
        page.locator("#stop").wait_for(state="hidden")
        assert page.locator("#choice").count() == 0 or not page.locator("#choice").is_visible()
        page.get_by_label("Snow", exact=True).check()
        page.wait_for_selector("#choice-slider img")
        assert "Only snow kept" in page.inner_text("#choice")
        page.wait_for_selector("#who .pruned")
        assert page.locator("#auto-slider img").first.get_attribute("alt")
        page.wait_for_selector("#map .scatterlayer > g:nth-last-child(2) .js-line", state="attached")
        assert visit.serious_findings() == []

        for button, tasks in (("#auto-png", []), ("#choice-png", ["desnow"])):
            file, report = client.predict(handle_file(photo), tasks, "", api_name="/restore")
            shown = pixels(visit.download(button), tmp_path)
            np.testing.assert_array_equal(shown, pixels(file, tmp_path))
        saved = json.loads(visit.download("#report"))
        assert saved["choice"]["expert"] == report["expert"]
        chosen = page.locator("#who .chosen").get_attribute("data-expert")
        assert chosen == report["expert"]


def test_the_download_is_the_models_array(
    url: str, client: Any, photo: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from gradio_client import handle_file

    from unirestorer import UniRestorer
    from unirestorer.imaging import to_uint8

    file, _ = client.predict(handle_file(photo), [], "1-2", api_name="/restore")
    restored = UniRestorer.from_pretrained(tiny_checkpoint, device="cpu").restore(photo, expert="1-2")
    difference = np.abs(pixels(file, tmp_path).astype(int) - to_uint8(restored.image).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3, (
        "equal up to the threads' order of summation"
    )


def test_forcing_by_keyboard_and_starting_over(browser: Any, url: str, photo: str) -> None:
    with Visit(browser, url, dark=True) as visit:
        page = visit.page
        visit.upload(photo)
        node = page.locator('#who [data-expert="1-3"]')
        node.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#choice-slider img")
        assert "You forced the expert" in page.inner_text("#choice")
        page.wait_for_selector('#who [data-expert="1-3"].chosen')
        page.locator("#divider input[type=range]").focus()
        before = divider_left(page)
        page.keyboard.press("Home")
        page.wait_for_function(
            "left => document.querySelector('#auto-slider .inner, #auto-slider .outer') "
            "&& window.getComputedStyle(document.querySelector('#auto-slider .outer'))"
            ".transform !== left",
            arg=before,
        )
        assert visit.serious_findings() == []
        page.click("#reset")
        page.wait_for_selector("#verdict .welcome")
        assert not page.locator("#auto-slider").is_visible()


def divider_left(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.querySelector('#auto-slider .outer')).transform")


def test_the_star_stands_where_the_report_says(browser: Any, url: str, tmp_path: Path) -> None:
    """Moved with each photo, also on a map that was coloured anew or not yet drawn; gone without one."""
    star = """() => {
        const map = document.querySelector('#map .js-plotly-plot');
        const drawn = map?.querySelector('.scatterlayer > g:last-child .point');
        return drawn ? String([map.data.at(-1).x[0], map.data.at(-1).y[0]]) : null;
    }"""
    with Visit(browser, url, query="&tab=lessons&example=0", shown="#lessons") as visit:
        page = visit.page
        page.wait_for_timeout(1000)  # restored behind the lessons
        page.get_by_role("tab", name="Restore").click()
        page.wait_for_function(star)
        place = page.evaluate(star)
        for seed in (1, 2):
            visit.upload(make_photo(tmp_path / f"{seed}.png", seed))
            page.wait_for_function(f"before => ({star})() !== before", arg=place)
            place = page.evaluate(star)
            reported = json.loads(visit.download("#report"))["auto"]["map"]
            assert [float(part) for part in place.split(",")] == [reported["x"], reported["y"]]
        page.evaluate("document.querySelector('#map .js-plotly-plot').data.old = true")
        page.get_by_label("finest expert", exact=True).check()
        page.wait_for_function("!document.querySelector('#map .js-plotly-plot').data.old")
        page.wait_for_function(star)
        assert page.evaluate(star) == place
        page.click("#reset")
        page.wait_for_function(f"() => ({star})() === null")


def test_the_lab_follows_the_slider_and_sweeps(browser: Any, url: str, photo: str) -> None:
    for dark, size in ((False, (1440, 1000)), (True, (390, 844))):
        with Visit(browser, url, size, dark) as visit:
            page = visit.page
            page.get_by_role("tab", name="Degradation lab").click()
            page.wait_for_selector("#lab-slider img")  # the built-in photo, without being asked
            page.get_by_label("noise", exact=True).check()
            page.wait_for_function("document.querySelector('#lab-verdict').innerText.includes('noise (')")
            page.set_input_files("#lab-photo input[type=file]", photo)
            slider = page.locator("#lab-strength input[type=range]")
            assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("0", "75")
            slider.focus()
            page.keyboard.press("End")
            page.wait_for_function(
                "document.querySelector('#lab-verdict').innerText.includes('75, beyond the trained range')"
            )
            page.wait_for_function("document.querySelectorAll('#lab-scores tbody tr').length >= 4")
            page.click("#lab-sweep")
            page.wait_for_selector("#lab-curves .scatterlayer")
            page.wait_for_selector("#lab-trajectory .scatterlayer")
            assert "Noise restored by: " in page.inner_text("#lab-swept")
            page.locator("#lab-player input").fill("3")  # a quarter of the way to 75
            assert page.inner_text("#lab-player output").startswith("σ of 255 18.8: ")
            line = "document.querySelector('#lab-curves .js-plotly-plot').layout.shapes"
            page.wait_for_function(f"{line}.find(shape => shape.name === 'here').x0 === 18.75")
            page.get_by_text("More degradations at once").click()
            page.locator("#lab-dejpeg input[type=number]").fill("20")
            page.keyboard.press("Tab")
            page.wait_for_function(
                "document.querySelector('#lab-verdict').innerText.includes('then medium compression')"
            )
            assert "dejpeg=20" in page.url
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            assert visit.serious_findings() == []
            page.get_by_role("tab", name="Restore").click()
            page.wait_for_selector("#map .scatterlayer")


def test_experts_are_compared_in_step(browser: Any, url: str, photo: str) -> None:
    with Visit(browser, url) as visit:
        page = visit.page
        page.get_by_role("tab", name="Compare experts").click()
        page.wait_for_selector("text=Give a photo in the Restore tab first")
        page.get_by_role("tab", name="Restore").click()
        visit.upload(photo)
        page.get_by_role("tab", name="Compare experts").click()
        page.wait_for_function("document.querySelectorAll('#compare .pane').length === 4")
        loaded = "[...document.querySelectorAll('#compare img')].every(i => i.naturalWidth === 160)"
        page.wait_for_function(loaded)
        page.get_by_role("button", name="Zoom in").click()
        pictures = "[...document.querySelectorAll('#compare img.result')]"
        moved = page.evaluate(f"{pictures}.map(i => getComputedStyle(i).transform)")
        assert len(moved) == 4 and all(matrix.startswith("matrix(1.5, 0, 0, 1.5, -") for matrix in moved)
        page.locator("#compare .pane").nth(1).focus()
        page.keyboard.press("ArrowLeft")
        assert page.evaluate(f"{pictures}.map(i => getComputedStyle(i).transform)")[0] != moved[0]
        page.get_by_label("Other experts").click()
        page.get_by_role("option").first.click()  # redrawn with one more, the zoom stays
        page.wait_for_function("document.querySelectorAll('#compare .pane').length >= 4")
        zoomed = f"{pictures}.every(i => getComputedStyle(i).transform.startsWith('matrix(1.5'))"
        page.wait_for_function(zoomed)
        page.get_by_role("button", name="Show what each one changed").click()
        shown = page.locator("#compare img.difference")
        assert shown.count() >= 3 and all(shown.nth(i).is_visible() for i in range(3))
        assert visit.serious_findings() == []


def test_many_photos_are_routed_at_once(browser: Any, url: str, photo: str, tmp_path: Path) -> None:
    text = tmp_path / "<b>text.png"
    text.write_text("not a photo")
    with Visit(browser, url, dark=True) as visit:
        page = visit.page
        page.get_by_role("tab", name="Many photos").click()
        page.set_input_files("#batch-files input[type=file]", [photo, str(text)])
        page.wait_for_selector("#batch-table tbody tr")
        assert page.locator("#batch-table tbody tr").count() == 2
        assert "1 photo went to 1 of 27 experts" in page.inner_text("#batch-summary")
        saved = visit.download("#batch-csv").decode("utf-8-sig").splitlines()
        assert saved[0].startswith("photo,looks like") and len(saved) == 3
        assert visit.serious_findings() == []
        page.click("#batch-vary")
        page.wait_for_function("document.querySelectorAll('#batch-table tbody tr').length === 50")


def test_a_walk_through_the_lessons(browser: Any, url: str, tiny_checkpoint: Path) -> None:
    from unirestorer import UniRestorer
    from unirestorer.demo.lessons import lessons_of

    lessons = lessons_of(UniRestorer.from_pretrained(tiny_checkpoint, device="cpu"))
    with Visit(browser, url) as visit:
        page = visit.page
        page.get_by_role("tab", name="Lessons").click()
        for number, lesson in enumerate(lessons):
            page.wait_for_function(
                "title => document.querySelector('#lesson h2').innerText === title", arg=lesson.title
            )
            page.wait_for_function(
                "wanted => new URLSearchParams(location.search).get('lesson') === wanted",
                arg=str(number + 1) if number else None,
            )
            page.get_by_label(lesson.choices[lesson.answer], exact=True).check()
            page.wait_for_function("document.querySelector('#lesson-answer').innerText.startsWith('Right.')")
            if number == 0:
                assert visit.serious_findings() == []
                page.click("#lesson-show")  # sets the Restore tab
                page.wait_for_selector("#auto-slider img")
                page.wait_for_function("new URLSearchParams(location.search).get('tab') === null")
                page.click("#to-lesson")
                page.wait_for_selector("#lesson-question", state="visible")
                page.wait_for_selector("#to-lesson", state="hidden")
                assert "tab=lessons" in page.url
            if lesson.numbers:
                page.wait_for_function(
                    "document.querySelector('#lesson-numbers').innerText.match(/with noise|together/)"
                )
            if number + 1 < len(lessons):
                page.click("#lesson-next")
        assert page.locator("#lesson-next").is_disabled()
        last = page.url.partition("?")[2].partition("&")[2]
        assert last.endswith(f"lesson={len(lessons)}")
        assert visit.serious_findings() == []
    likelihood = next(i for i, lesson in enumerate(lessons) if lesson.numbers == "likelihood")
    query = f"&tab=lessons&lesson={likelihood + 1}&example=0"
    with Visit(browser, url, query=query, shown="#lessons") as visit:
        visit.page.wait_for_function(  # the example's own numbers, without another tab's being opened
            "document.querySelector('#lesson-numbers').innerText.includes('together')"
        )
        tabs = visit.page.locator("#tabs [role=tab]:visible").all_inner_texts()
        assert len(tabs) == len(set(tabs)) == 6


def test_the_model_card(browser: Any, url: str) -> None:
    with Visit(browser, url, query="&tab=card") as visit:
        visit.page.wait_for_selector("#model-card")
        assert "27 experts in levels of 1, 7, 19" in visit.page.inner_text("#model-card")
        assert visit.serious_findings() == []


def test_a_cards_tables_open_at_a_click(browser: Any, url: str) -> None:
    """On a phone, too, which is narrower; the marks around them were shown as text, and so were folds."""
    with Visit(browser, url, (390, 844)) as visit:
        visit.page.goto(f"{url}/tiny-mixed?tab=card")
        visit.page.wait_for_selector("#model-card summary")
        table = visit.page.locator("#model-card details table")
        assert not table.is_visible() and "results" not in visit.page.inner_text("#model-card")
        visit.page.click("#model-card summary")
        table.wait_for()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visit.serious_findings() == []


def test_a_link_round_trip(browser: Any, url: str) -> None:
    query = "&example=0&tasks=desnow&hide=batch.sidebar&task=denoise&strength=60&tab=<b>"
    with Visit(browser, url, query=query) as visit:
        page = visit.page
        page.wait_for_selector("#choice-slider img")
        assert "Only snow kept" in page.inner_text("#choice")
        assert page.get_by_role("tab", name="Compare experts").is_visible()
        assert page.get_by_role("tab", name="Many photos").count() == 0
        assert not page.locator("#sidebar").is_visible()
        page.get_by_role("tab", name="Degradation lab").click()
        page.wait_for_function("document.querySelector('#lab-verdict').innerText.includes('strength 60')")
        page.locator("#lab-strength input[type=range]").focus()
        page.keyboard.press("End")
        page.wait_for_function("window.location.search.includes('strength=75')")
        link = page.url.partition("?")[2].partition("&")[2]
        assert "tab=lab" in link and "example=0" in link
    with Visit(browser, url, query=f"&{link}") as visit:
        visit.page.wait_for_function(
            "document.querySelector('#lab-verdict')?.innerText.includes('strength 75')"
        )


def test_the_other_model_takes_the_photo_along(browser: Any, url: str, photo: str) -> None:
    """One click in the sidebar: the same photo, tasks and tab under the other model, and back."""
    with Visit(browser, url, query="&tasks=denoise&expert=1-2") as visit:
        page = visit.page
        visit.upload(photo)
        page.wait_for_selector("#choice-slider img")
        page.locator("#models").get_by_role("link", name="tiny-mixed").click()
        page.wait_for_url("**/tiny-mixed?*")
        page.wait_for_selector("#choice-slider img")
        assert "Only noise kept" in page.inner_text("#choice") and "expert" not in page.url
        assert "13 experts" in page.inner_text("#models")
        assert page.locator("#who [data-expert]").count() == 13
        assert page.locator("#models [aria-current]").inner_text().startswith("tiny-mixed")
        page.locator("#other-models a").click()
        page.wait_for_url(lambda address: "tiny-mixed" not in address)
        page.wait_for_selector("#choice-slider img")
        assert page.locator("#who [data-expert]").count() == 27


def test_on_a_phone_everything_is_in_reach(browser: Any, url: str) -> None:
    with Visit(browser, url, (390, 844)) as visit:
        page = visit.page
        toggle = page.locator("#sidebar .toggle-button")
        assert toggle.get_attribute("aria-expanded") == "false"
        assert not page.locator("#tasks").is_visible()
        page.click('[data-example="2"]')
        page.wait_for_selector("#auto-slider img")
        page.wait_for_selector("#verdict .lead")
        place = "document.querySelector('{}').getBoundingClientRect().{}"
        page.wait_for_function(place.format("#verdict .lead", "bottom < 844"))  # scrolled to
        page.click("#verdict [data-go=why-sure]")
        page.wait_for_function(place.format("#why-sure", "top < 70"))
        toggle.click()
        page.get_by_label("Noise", exact=True).check()
        toggle.click()
        page.wait_for_selector("#choice-slider img")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visit.serious_findings() == []


def test_what_is_no_photo_is_said_on_the_page(browser: Any, url: str, photo: str, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=window.evil=1>.png"
    evil.write_text("not a photo")
    with Visit(browser, url) as visit:
        page = visit.page
        visit.upload(photo)
        page.set_input_files("#photo input[type=file]", [])
        page.click("#photo [aria-label=Clear], #photo [aria-label='Remove Image']")
        page.wait_for_selector("#verdict .welcome")
        page.set_input_files("#photo input[type=file]", str(evil))
        page.wait_for_selector("#verdict .bad")
        assert "cannot be used" in page.inner_text("#verdict")
        assert "cannot be used" in page.inner_text("[data-testid=toast-body]")
        assert not page.locator("#auto-slider").is_visible()
        assert page.evaluate("window.evil") is None
        page.reload()
        page.wait_for_selector("#examples [data-example]")
        visit.upload(photo)
        page.set_input_files("#photo input[type=file]", str(evil))  # in the other one's place
        page.wait_for_selector("#verdict .bad")
        page.wait_for_timeout(1000)
        assert page.inner_text("[data-testid=toast-body]").count("cannot be used") == 1
        visit.problems = [p for p in visit.problems if "Failed to load resource" not in p]


def test_two_visitors_never_see_each_others_photo(browser: Any, url: str, tmp_path: Path) -> None:
    photos = [make_photo(tmp_path / f"{seed}.png", seed) for seed in (1, 2)]
    visits = [Visit(browser, url) for _ in photos]
    for visit, path in zip(visits, photos, strict=True):
        visit.page.set_input_files("#photo input[type=file]", path)
    seen = []
    for visit, path in zip(visits, photos, strict=True):
        with visit:
            visit.page.wait_for_selector("#auto-slider img")
            seen.append(pixels(visit.download("#auto-png"), tmp_path).astype(int))
            distance = [np.abs(seen[-1] - pixels(other, tmp_path)).mean() for other in photos]
            assert distance.index(min(distance)) == photos.index(path)
    assert (seen[0] != seen[1]).any()


def test_endpoints(url: str, client: Any, photo: str, tmp_path: Path) -> None:
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    file, report = client.predict(handle_file(photo), ["derain", "dehaze"], "", api_name="/restore")
    assert pixels(file, tmp_path).shape == (120, 160, 3)
    assert report["tasks"]["derain"] + report["tasks"]["dehaze"] == pytest.approx(1)
    seen = client.predict(handle_file(photo), [], api_name="/inspect")
    assert (
        seen["expert"] in {level["expert"] for level in seen["levels"]} and "restore" not in seen["seconds"]
    )
    degraded, recipe = client.predict(handle_file(photo), "", "denoise", 25, 3, api_name="/degrade")
    again, _ = client.predict(handle_file(photo), json.dumps(recipe), None, None, None, api_name="/degrade")
    np.testing.assert_array_equal(pixels(degraded, tmp_path), pixels(again, tmp_path))
    assert recipe == {"seed": 3, "steps": [{"kind": "noise", "sigma_8bit": 25}]}

    text = tmp_path / "text.png"
    text.write_text("not a photo")
    for arguments, name, reason in (
        ((handle_file(text), [], ""), "/restore", "cannot be used"),
        ((handle_file(photo), [], "9-9"), "/restore", "Unknown expert"),
        ((handle_file(photo), "{", None, None, None), "/degrade", "not JSON"),
    ):
        with pytest.raises(AppError, match=reason):
            client.predict(*arguments, api_name=name)
