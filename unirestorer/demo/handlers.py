"""What the page and the API ask of the model: photos in files, results in files, reasons as reports.

Nothing here outlives a call: what a visitor's next click needs travels in a `Memory`, which the page keeps
per session.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradio.processing_utils import save_bytes_to_cache
from PIL import Image
from torch import Tensor

from unirestorer.degradation import Recipe, compose
from unirestorer.demo.photos import photo_bytes, read_photo, shrink
from unirestorer.imaging import to_pil
from unirestorer.pipeline import Clock, UniRestorer
from unirestorer.report import describe
from unirestorer.types import Decision, Restoration, Task, named_tasks

KEPT_SECONDS = 3600  # files and memories of a visitor
LARGE_PX = 1_500_000  # a photo with more pixels is told what was decided before it is restored

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Shown:
    """One restored result: its report, the full-size PNG to download and the file that is shown."""

    report: dict[str, Any]
    png: str
    after: str


@dataclass(frozen=True)
class Memory:
    """What is kept of a visitor's photo between two clicks: files and the decision, no full-size pixels."""

    photo: str
    before: str  # the photo as shown
    size: tuple[int, int]  # width, height
    decision: Decision  # auto mode's
    auto: Shown
    ahead: bool = False  # restored before anyone asked


@dataclass(frozen=True)
class Decided:
    """A photo of which auto mode has decided who restores it."""

    x: Tensor  # (1, 3, H, W)
    decision: Decision


@dataclass(frozen=True)
class Prepared:
    """Auto mode's memory of an example photo, with the files that it names."""

    memory: Memory
    before: bytes
    png: bytes
    after: bytes


@dataclass(frozen=True)
class View:
    """A state of the Restore tab. `fresh` says that the photo is new, `error` what was wrong with it."""

    memory: Memory | None = None
    choice: Shown | None = None
    tasks: tuple[Task, ...] = ()
    expert: str = ""
    json: str = ""  # file of the report
    fresh: bool = True
    waiting: bool = False  # the choice is still being restored
    decided: dict[str, Any] | None = None  # auto mode's report of a large photo that is still being restored
    megapixels: float = 0.0  # of that photo
    error: ValueError | None = None


class Handlers:
    """The model behind the page. Files for the browser go to `folder`; who serves them also deletes them."""

    def __init__(self, model: UniRestorer, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self._prepared: dict[str, Prepared] = {}  # by SHA-256 of the photo's file

    def prepare(self, photos: Iterable[Path]) -> None:
        """Restore example photos in auto mode now, so that asking for one is answered at once.

        What cannot be restored is left to whoever asks for it, and told then. Ends early when the program
        does.
        """
        for photo in photos:
            if not threading.main_thread().is_alive():
                return
            with contextlib.suppress(ValueError, OSError), tempfile.TemporaryDirectory() as folder:
                memory = Handlers(self.model, Path(folder)).auto(str(photo))
                before, png, after = (
                    Path(file).read_bytes() for file in (memory.before, memory.auto.png, memory.auto.after)
                )
                key = hashlib.sha256(photo.read_bytes()).hexdigest()
                self._prepared[key] = Prepared(replace(memory, ahead=True), before, png, after)

    def views(
        self,
        photo: str | None,
        tasks: list[str],
        expert: str,
        memory: Memory | None,
        progress: Progress | None = None,
    ) -> Iterator[View]:
        """Auto mode's result, unless `memory` has it; then, with tasks or a forced expert, the second one."""
        named: tuple[Task, ...] = ()
        try:
            named = tuple(sorted(named_tasks(tasks) or (), key=list(Task).index))
            if not photo:
                yield View(tasks=named, expert=expert)
                return
            fresh = memory is None or memory.photo != photo or not Path(memory.auto.png).is_file()
            if fresh or memory is None:
                decided = None if self._ahead(photo) else self.decide(photo)
                pixels = decided.x.shape[2] * decided.x.shape[3] if decided else 0
                if decided and pixels > LARGE_PX:
                    report = describe(self.model, decided.decision)
                    yield View(tasks=named, expert=expert, decided=report, megapixels=pixels / 1e6)
                memory = self.auto(photo, progress, decided)
            second = bool(named or expert)
            view = View(memory, None, named, expert, fresh=fresh, waiting=second)
            if fresh or not second:
                yield replace(view, json=self._report(memory, None, named, expert))
            if second:
                choice = self.choose(memory, named, expert, progress)
                report = self._report(memory, choice, named, expert)
                yield replace(view, choice=choice, json=report, fresh=False, waiting=False)
        except ValueError as error:
            yield View(tasks=named, expert=expert, error=error)

    def prepared_view(self, photo: str, tasks: list[str], expert: str) -> View | None:
        """The first view of a photo that was restored ahead, or nothing: it takes no model.

        Raises ValueError for an unknown task.
        """
        return next(self.views(photo, tasks, expert, None)) if self._ahead(photo) else None

    def _ahead(self, photo: str) -> Prepared | None:
        return self._prepared.get(hashlib.sha256(photo_bytes(photo)).hexdigest())

    def decide(self, photo: str) -> Decided:
        """Auto mode's decision for a photo's file. Raises ValueError for what is no photo."""
        clock = Clock({})
        x = read_photo(photo)
        clock.stop("decode")
        return Decided(x, self.model.inspect(x, seconds=clock.seconds))

    def auto(self, photo: str, progress: Progress | None = None, decided: Decided | None = None) -> Memory:
        """Restore a photo's file in auto mode, as was `decided` already or is now. Raises ValueError for what
        is no photo.
        """
        prepared = None if decided else self._ahead(photo)
        if prepared:
            memory = prepared.memory
            png, after = (
                self.keep_bytes(data, Path(file).name)
                for data, file in ((prepared.png, memory.auto.png), (prepared.after, memory.auto.after))
            )
            before = self.keep_bytes(prepared.before, Path(memory.before).name)
            shown = replace(memory.auto, png=png, after=after)
            return replace(memory, photo=photo, before=before, auto=shown)
        decided = decided or self.decide(photo)
        x, decision = decided.x, decided.decision
        shown = self._show(self.model.apply(x, decision, progress=progress), "auto")
        size = (x.shape[3], x.shape[2])
        return Memory(photo, self.write(shrink(to_pil(x)), "photo"), size, decision, shown)

    def choose(
        self, memory: Memory, tasks: tuple[Task, ...], expert: str, progress: Progress | None = None
    ) -> Shown:
        """The result under an instruction or a forced expert, from auto mode's estimate.

        When the same expert is chosen, the picture is auto mode's. Raises ValueError for an unknown expert.
        """
        clock = Clock({})
        route = self.model.route(memory.decision.estimate, tasks or None, expert or None)
        decision = Decision(memory.decision.estimate, route, clock.seconds)
        clock.stop("route")
        if int(route.expert) == int(memory.decision.route.expert):
            return replace(memory.auto, report=describe(self.model, decision))
        x = read_photo(memory.photo)
        clock.stop("decode")
        return self._show(self.model.apply(x, decision, progress=progress), "choice")

    def keep(self, path: Path) -> str:
        """A copy of a file where the browser may fetch it."""
        return self.keep_bytes(path.read_bytes(), path.name)

    def restore(self, photo: str | None, tasks: list[str], expert: str | None) -> tuple[str, dict[str, Any]]:
        """A photo's file -> the restored PNG and the report. Raises ValueError."""
        result = self.model(
            read_photo(photo), tasks=named_tasks(tasks) or None, expert=(expert or "").strip() or None
        )
        return self.write(to_pil(result.image), "restored"), describe(self.model, result.decision)

    def inspect(self, photo: str | None, tasks: list[str]) -> dict[str, Any]:
        """A photo's file -> the report of what the router would do. Raises ValueError."""
        clock = Clock({})
        x = read_photo(photo)
        clock.stop("decode")
        return describe(self.model, self.model.inspect(x, named_tasks(tasks) or None, seconds=clock.seconds))

    def degrade(
        self, photo: str | None, recipe: str, task: str, strength: float | None, seed: int | None
    ) -> tuple[str, dict[str, Any]]:
        """A photo's file and a recipe -> the degraded PNG and the recipe. Raises ValueError."""
        made = self.make_recipe(recipe, task, strength, seed)
        return self.write(to_pil(made.apply(read_photo(photo))), "degraded"), made.to_dict()

    def make_recipe(self, text: str, task: str, strength: float | None, seed: int | None) -> Recipe:
        """The recipe in a JSON text, or else one step of `task`, by default of a middling trained strength.

        A `seed` overrules the recipe's. Raises ValueError.
        """
        if seed is not None and (isinstance(seed, float) and not seed.is_integer()):
            raise ValueError(f"a seed is a whole number, got {seed}")
        if text and text.strip():
            recipe = Recipe.from_json(text)
            return recipe if seed is None else recipe.reseeded(int(seed))
        if not task:
            raise ValueError("nothing to degrade with: give a recipe or a task")
        kind = Task(task)
        if strength is None:
            if kind not in self.model.ranges:
                raise ValueError(f"this model was trained on no strength of {kind}: give one")
            strength = sum(self.model.ranges[kind].trained) / 2
        return compose({kind: strength}, int(seed or 0), self.model.mode)

    def _show(self, result: Restoration, name: str) -> Shown:
        image = to_pil(result.image)
        png = self.write(image, f"restored-{name}")
        small = shrink(image)
        after = png if small is image else self.write(small, f"shown-{name}")
        return Shown(describe(self.model, result.decision), png, after)

    def _report(self, memory: Memory, choice: Shown | None, tasks: tuple[Task, ...], expert: str) -> str:
        width, height = memory.size
        report: dict[str, Any] = {"photo": {"width": width, "height": height}, "auto": memory.auto.report}
        if choice is not None:
            report["choice"] = {"tasks_named": list(tasks), "expert_forced": expert or None, **choice.report}
        return self.keep_bytes(json.dumps(report, indent=1).encode(), "report.json")

    def write(self, image: Image.Image, name: str) -> str:
        """A picture as a PNG file where the browser may fetch it. Raises ValueError when the disk is full."""
        data = io.BytesIO()
        image.save(data, "PNG", compress_level=4)  # lossless at any level, in half the default's time
        return self.keep_bytes(data.getvalue(), f"{name}.png")

    def keep_bytes(self, data: bytes, name: str) -> str:
        """A file with these bytes where the browser may fetch it. Raises ValueError when the disk is full."""
        try:
            return save_bytes_to_cache(data, name, str(self.folder))
        except OSError:
            raise ValueError("the server cannot store the result just now: try again later") from None
