"""Every sentence of the page, as pure functions of a report (`unirestorer.report.describe`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from unirestorer.degradation.recipe import CLEAN_CAPTION, ORDER
from unirestorer.demo.scale import Scale
from unirestorer.tree import DegradationTree
from unirestorer.types import TASK_NOUNS, Mode, Task

TASK_WORDS = TASK_NOUNS | {Task.DEJPEG: "JPEG artefacts"}
STAGE_WORDS = {
    "decode": "read the photo",
    "estimate": "estimate",
    "route": "route",
    "load": "load the expert",
    "restore": "restore",
}
SPREAD_LIMIT = 0.12  # of the map's width: beyond it the neighbours lie apart
UNFAMILIAR = 95  # percentile of the distance from known degradations above which to doubt everything
NBSP = "\u00a0"
COUNTS = (
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)


def made_for(mode: Mode) -> str:
    """Which photos a model is made for."""
    return "several degradations at once" if mode == "mixed" else "one degradation"


def first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def number_word(number: int) -> str:
    return COUNTS[number] if number < len(COUNTS) else str(number)


def counted(count: int, noun: str) -> str:
    """ "seven types", "one root", "27 experts"."""
    return f"{number_word(count)} {noun}{'s' * (count != 1)}"


def percent(share: float) -> str:
    """A share (0 to 1) in whole percent; never "0 %" for the possible nor "100 %" for the uncertain."""
    if 0 < share < 0.005:
        return f"under 1{NBSP}%"
    if 0.995 <= share < 1:
        return f"over 99{NBSP}%"
    return f"{100 * share:.0f}{NBSP}%"


def short_percent(share: float) -> str:
    """The same where room is scarce: "<1 %"."""
    return percent(share).replace("under ", "<").replace("over ", ">")


def listed(words: Iterable[str]) -> str:
    """ "rain", "rain and haze", "rain, haze and noise"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def task_list(tasks: Iterable[Task]) -> str:
    """Tasks in plain words, in the order of `Task`."""
    named = set(tasks)
    return listed(TASK_WORDS[task] for task in Task if task in named)


def spoken(name: str) -> str:
    """A node's name as it is said: "rain, heavy 2" -> "heavy rain 2"."""
    return re.sub(r"^(.+), (\D+)( \d+)?$", r"\2 \1\3", name)


def plain(name: str) -> str:
    """The same without the number that tells namesakes apart, for sentences: "heavy rain"."""
    return re.sub(r" \d+$", "", spoken(name))


def mixes_types(tree: DegradationTree) -> bool:
    """Whether nodes below ALL hold several types."""
    return any(len(tasks) > 1 for sets in tree.task_sets for tasks in sets)


def level_words(tree: DegradationTree) -> tuple[str, ...]:
    """The granularities' names, coarse to fine: ALL, TYPE and DEGREE in a tree of three levels, unless its
    nodes mix types.
    """
    if tree.levels == 3:
        return ("ALL", "GROUP", "SUBGROUP") if mixes_types(tree) else ("ALL", "TYPE", "DEGREE")
    names = [f"LEVEL{NBSP}{level}" for level in range(tree.levels)]
    return ("ALL", *names[1:]) if tree.levels > 1 else tuple(names)


def expert_label(tree: DegradationTree, expert: int) -> str:
    """An expert in words with its granularity: "DEGREE: heavy rain"."""
    return f"{level_words(tree)[tree.level_of(expert)[0]]}: {spoken(tree.words(expert))}"


def expert_choices(tree: DegradationTree) -> list[tuple[str, str]]:
    """(label, name) of every expert, for a list to choose from."""
    return [(expert_label(tree, number), name) for number, name in enumerate(tree.expert_names)]


def role(level: int, levels: int, *, mixes: bool = False) -> str:
    """What kind of expert works at a level; one that knows several mixtures (`mixes`) is no specialist."""
    if levels == 1:
        return "an expert"
    if level == 0:
        return "the expert for everything"
    finest = "one of the narrowest experts" if mixes else "a specialist"
    return finest if level == levels - 1 else "a middle expert"


def _who(level: int, levels: int, name: str) -> str:
    """Who took over; the expert for everything needs no further name."""
    kind = role(level, levels, mixes=" + " in name)
    return f"{kind} took over" + ("" if level == 0 < levels - 1 else f": {name}")


# What is it?


def looks_clean(report: dict[str, Any]) -> bool:
    """Whether the photo's nearest caption is that of an undegraded one."""
    return bool(report["captions"]) and report["captions"][0]["text"] == CLEAN_CAPTION


def looks_like(report: dict[str, Any]) -> str:
    """The degradation in one sentence, as surely as the probabilities allow."""
    if looks_clean(report):
        return "This photo looks clean, so expect little change."
    return f"{_guess(report)}."


def _guess(report: dict[str, Any]) -> str:
    leaf = report["leaves"][report["leaf"]]
    if _mixes(leaf):
        return _guess_several(report)
    if leaf["probability"] >= 0.5:
        return f"Looks like {plain(leaf['name'])} ({percent(leaf['probability'])})"
    ranked = sorted(report["tasks"].items(), key=lambda item: -item[1])
    (first, p), (second, q) = ranked[:2]
    if p >= 0.5:
        return f"Looks like {TASK_WORDS[Task(first)]} ({percent(p)}), how much of it is unclear"
    return (
        f"Hard to tell: {TASK_WORDS[Task(first)]} ({percent(p)}) or {TASK_WORDS[Task(second)]} ({percent(q)})"
    )


def _mixes(leaf: dict[str, Any]) -> bool:
    """Whether a leaf holds several degradations at once."""
    return " + " in leaf["name"]


def _guess_several(report: dict[str, Any]) -> str:
    """Where leaves are mixtures: each degradation that the captions name, whatever the leaf is called."""
    seen = {Task(name): share for name, share in report["seen"].items()}
    likely = [task for task in Task if seen[task] >= 0.5]
    if likely:
        return f"Looks like {listed(f'{TASK_WORDS[task]} ({percent(seen[task])})' for task in likely)}"
    (first, p), (second, q) = sorted(seen.items(), key=lambda item: -item[1])[:2]
    return f"Hard to tell: {TASK_WORDS[first]} ({percent(p)}), {TASK_WORDS[second]} ({percent(q)}) or others"


def familiar(report: dict[str, Any]) -> str:
    """How far the photo lies from the known degradations, and whether its place on the map can be trusted."""
    if "distance_percentile" not in report:
        return "This model has no map, so how familiar the photo is cannot be said."
    p = report["distance_percentile"]
    verdict = (
        "familiar ground"
        if p <= 75
        else "a little unusual"
        if p <= UNFAMILIAR
        else "unfamiliar ground, so doubt the route"
    )
    sentence = f"Farther from known degradations than {_of_photos(p / 100)}: {verdict}."
    if report["map"]["spread"] > SPREAD_LIMIT:
        sentence += " Its nearest neighbours lie apart, so the star’s place is a compromise."
    return sentence


def captions_note(report: dict[str, Any]) -> str:
    """How the nearest captions and the verdict hang together, and where they part."""
    if looks_clean(report):
        return (
            "That the photo looks clean is said by these words. The tree has no place for clean photos, so "
            "the router names an expert all the same."
        )
    if _mixes(report["leaves"][report["leaf"]]):
        return (
            "The descriptions that fit best. The verdict’s percentages add up all that name a degradation; "
            "the router, which picks the expert, judges the photo’s place on the map instead."
        )
    note = (
        "The descriptions that fit best. They do not decide: the router judges the photo’s place on the map, "
        "and its verdict counts"
    )
    seen, routed = (Task(max(report[kind], key=report[kind].__getitem__)) for kind in ("seen", "tasks"))
    if seen == routed:
        return f"{note}."
    parted = f"{TASK_WORDS[seen]} by the words, {TASK_WORDS[routed]} by the router"
    return f"{note}. Here they differ: {parted}."


def doubt(report: dict[str, Any]) -> str:
    """A warning beside the verdict where nothing like the photo was trained on; else nothing."""
    p = report.get("distance_percentile", 0)
    if p <= UNFAMILIAR or looks_clean(report):
        return ""
    return f"But it is less like anything trained on than {_of_photos(p / 100)}: doubt this."


def _of_photos(share: float) -> str:
    return "every training photo" if share >= 1 else f"{percent(share)} of training photos"


# How sure?


def sure(report: dict[str, Any]) -> str:
    """The uncertainty of the estimate against that of training photos."""
    if "e_gran_percentile" not in report:
        return "This model has no training statistics, so the uncertainty cannot be compared"
    p = report["e_gran_percentile"]
    if p >= 50:
        return f"The estimate is shakier than {_of_photos(p / 100)}"
    return f"The estimate is steadier than {_of_photos(1 - p / 100)}"


# Who restores it?


def took_over(report: dict[str, Any]) -> str:
    """Uncertainty and the router's choice in one sentence."""
    levels = len(report["levels"])
    level = report["level"]
    chosen = report["levels"][level]
    if looks_clean(report):
        name = plain(chosen["name"])
        return f"No expert is made for clean photos: the one that seemed closest worked on it, {name}."
    link = ", and"
    if "e_gran_percentile" in report and levels > 1:
        shaky = report["e_gran_percentile"] >= 50
        link = ", so" if shaky == (level < levels - 1) else ", yet"
    return f"{sure(report)}{link} {_who(level, levels, plain(chosen['name']))}."


def at_work(megapixels: float) -> str:
    """What a large photo waits for, once it is known who restores it."""
    return f"Now restoring {megapixels:.0f}{NBSP}megapixels, piece by piece."


def choice_sentence(report: dict[str, Any], tasks: Iterable[Task], expert: str) -> str:
    """What an instruction (`tasks`) or a forced `expert` changed."""
    named = list(tasks)
    chosen = plain(report["expert_name"])
    router = plain(report["levels"][report["level"]]["name"])
    if expert:
        same = chosen == router and not report["forced"]
        alone = f"With {task_list(named)} named" if named else "Left alone"
        return f"You forced the expert for {chosen}. {alone}, the router would choose " + (
            "the same." if same else f"{router}."
        )
    who = _who(report["level"], len(report["levels"]), chosen)
    kept = f"Only {task_list(named)} kept, all other experts ruled out"
    if _mixes(report["leaves"][report["leaf"]]):  # the captions name what they did before
        return f"{kept}; {who}."
    leaf = report["leaves"][report["leaf"]]
    return f"{kept}. Of these, {plain(leaf['name'])} fits best ({percent(leaf['probability'])}); {who}."


# The degradation lab


def strength_label(scale: Scale) -> str:
    """What the lab's slider moves: "Noise: σ of 255"."""
    return f"{first_upper(TASK_WORDS[scale.task])}: {scale.unit}"


def in_order(tasks: Iterable[Task]) -> str:
    """The order in which nature degrades: "light, blur, noise, rain, snow, then haze"."""
    present = set(tasks)
    *most, last = (TASK_NOUNS[task].removeprefix("low ") for task in ORDER if task in present)
    return f"{', '.join(most)}, then {last}"


def trained(scale: Scale) -> str:
    """The strengths that the experts were trained on."""
    low, high = scale.range.trained
    return f"Trained on {low:g} to {high:g}."


def trained_range(scale: Scale) -> str:
    """What lies where on the slider."""
    low, high = scale.range.trained
    worse = "lower" if scale.falls else "higher"
    return f"The experts were trained on {low:g} to {high:g}; {worse} is beyond anything they saw."


def made_with(steps: Iterable[tuple[str, float, bool]], seed: int) -> str:
    """How the lab's photo was made, from each step's (name, strength, beyond the trained range)."""
    parts = [
        f"{name} (strength {strength:.3g}{', beyond the trained range' if is_beyond else ''})"
        for name, strength, is_beyond in steps
    ]
    return f"Made with {', then '.join(parts) or 'nothing'}; seed {seed}."


def switches(points: Iterable[tuple[float, str]]) -> list[tuple[float, str]]:
    """(strength, expert) where a sweep's expert changes, the first one included."""
    changes: list[tuple[float, str]] = []
    for strength, expert in points:
        if not changes or changes[-1][1] != expert:
            changes.append((strength, expert))
    return changes


def swept(task: Task, points: list[tuple[float, str, float | None]]) -> str:
    """A sweep in words, from (strength, expert, percentile of e_gran): who took over where, and how
    uncertainty moved.
    """
    changes = switches((strength, expert) for strength, expert, _ in points)
    path = ", ".join(f"{plain(expert)} (from {strength:.3g})" for strength, expert in changes)
    sentence = f"{first_upper(TASK_WORDS[task])} restored by: {path}."
    first, last = points[0][2], points[-1][2]
    if first is not None and last is not None:
        sentence += (
            f" The estimate was shakier than {_of_photos(first / 100)} at first, than "
            f"{percent(last / 100)} at the end."
        )
    return sentence


# Around


def device(kind: str) -> str:
    """The device in words."""
    where = "a graphics card (GPU)" if kind == "cuda" else "the server’s processor (CPU)"
    return f"Runs on {where} in single precision."


def duration(seconds: float) -> str:
    return f"{seconds:.1f}{NBSP}s" if seconds >= 1 else f"{1000 * seconds:.0f}{NBSP}ms"


def timing(seconds: dict[str, float]) -> str:
    """Seconds per stage: "read the photo 4 ms · estimate 80 ms · …"."""
    return " · ".join(
        f"{STAGE_WORDS.get(stage, stage)} {duration(value)}" for stage, value in seconds.items()
    )
