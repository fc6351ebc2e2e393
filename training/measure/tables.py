"""The tables of README and model cards, printed from metrics.json between marks, so that they cannot drift.

python -m training tables                        write them into README and the shipped models' cards
python -m training tables --checkpoint out/mine  print those of another model
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from training.measure import classical
from training.measure.evaluate import HEADS, KEY, WAYS, WORST, quality_rows, quality_table, table
from training.measure.protocol import Case, cases
from unirestorer.checkpoint import LIBRARY_FOLDER, find_checkpoint, shipped
from unirestorer.files import atomic_write
from unirestorer.types import Task

BEGIN, END = "<!-- results of {} -->", "<!-- end of results of {} -->"  # with a checkpoint's name
GROUPS = {
    "single-in": "One degradation, strengths that were trained",
    "single-out": "One degradation, beyond the trained strengths",
    "single-mild": "One degradation, weaker than any above",
    "single-extra": "All photos of CBSD68, at the strengths of the paper's table of noise and JPEG",
    "mixed-in": "Several degradations at once, strengths that were trained",
    "mixed-out": "Several degradations at once, beyond the trained strengths",
    "second-in": "Second generators, which training never saw",
    "unseen": "Unseen types of degradation",
    "real": "Real pairs",
    "clean": "Undegraded photos, against themselves",
    "grey": "Photos in black and white",
}
EACH = ("real", "clean")  # groups of sets that differ too much for an average
SHARES = ("type_accuracy", "leaf_accuracy", "routing_accuracy")


def glance(metrics: dict[str, Any]) -> str:
    """README's table of what was measured: an overview."""
    return "\n".join(overview(metrics.get(KEY, {}).get("cases", {})))


def results(metrics: dict[str, Any]) -> str:
    """A card's tables of what was measured: an overview, and the others folded behind their titles."""
    measured = metrics.get(KEY, {}).get("cases", {})
    lines = []
    for group, title in GROUPS.items():
        of_group, by_id = _of_group(measured, group)
        if of_group:
            lines += [f"**{title}** (PSNR in dB / SSIM, RGB)", "", *quality_table(of_group, by_id), ""]
    folding = [
        *lines,
        *routing(measured),
        *uncertainty(measured),
        *classical.markdown(metrics.get("classical")),
        *overhead(metrics.get("overhead")),
        *shapes(metrics.get("shapes")),
        *ablation(metrics.get("ablation-single")),
        *ablation(metrics.get("ablation-mixed")),
    ]
    return "\n".join([*overview(measured), *worst(measured), *folded(folding)])


def _of_group(measured: dict[str, Any], group: str) -> tuple[dict[str, Any], dict[str, Case]]:
    by_id = {case.id: case for case in cases(group)}
    return {name: figures for name, figures in measured.items() if name in by_id}, by_id


def overview(measured: dict[str, Any]) -> list[str]:
    """One line for every group: its widest average; for sets of photos that are no series, each set."""
    rows = []
    for group, title in GROUPS.items():
        of_group, by_id = _of_group(measured, group)
        if not of_group:
            continue
        lines = quality_rows(of_group, by_id, WAYS)
        if group in EACH:
            rows += [[f"{title}: {name}", *cells] for name, *cells in lines[: len(of_group)]]
        else:
            counts = {name: figures["n"] for name, figures in of_group.items()}
            tasked = [count for name, count in counts.items() if by_id[name].tasks]  # an average over tasks
            rows.append([f"{title}, {lines[-1][0]}", str(sum(tasked or counts.values())), *lines[-1][2:]])
    if not rows:
        return []
    head = ["what", "photos", *(HEADS[way] for way in WAYS)]
    return ["**At a glance** (PSNR in dB / SSIM, RGB)", "", *table(head, rows), ""]


def folded(lines: list[str]) -> list[str]:
    """Tables (each a title in bold, perhaps with a note, and lines) that open at a click on their titles."""
    out: list[str] = []
    for line in lines:
        if line.startswith("**"):
            name, _, note = line[2:].partition("**")
            out += ["</details>", ""] if out else []
            out += ["<details>", f"<summary>{name}</summary>", "", note.strip()]
        else:
            out.append(line)
    return [*out, "</details>", ""] if out else []


def worst(measured: dict[str, Any]) -> list[str]:
    """The real photos, of all that were measured, that auto mode hurts most."""
    photos = [
        (case.name, row) for case in cases("real") for row in measured.get(case.id, {}).get("worst", [])
    ]
    photos.sort(key=lambda photo: photo[1]["auto"] - photo[1]["input"])
    rows = [
        [name, row["photo"], f"{row['input']:.2f}", f"{row['auto']:.2f}", row["expert"]]
        for name, row in photos[:WORST]
    ]
    if not rows:
        return []
    title = "**The worst of the real photos** (PSNR in dB, with the expert that auto mode chose)"
    return [title, "", *table(["case", "photo", "input", "auto", "restored as"], rows), ""]


def routing(measured: dict[str, Any]) -> list[str]:
    """How auto mode routed photos: by mixture or task (the mean over its strengths) and band."""
    together: dict[str, list[dict[str, Any]]] = {}
    for group in ("single-mild", "single-in", "single-out", "mixed-in", "mixed-out"):
        for case in cases(group):
            if case.id in measured:
                name = f"{case.name}, {group.partition('-')[2]}"
                together.setdefault(name, []).append(measured[case.id])
    rows = [[name, *_routed(figures)] for name, figures in together.items()]
    if not rows:
        return []
    title = (
        "**Where auto mode sent them** (share of photos; *best expert*: within 0.05 dB of the oracle; "
        "*load*: ALL / TYPE / DEGREE in percent; *path*: PSNR of these three on the way to the own leaf; "
        "*over finest*: auto mode's PSNR less that of the finest expert of the leaf that it chose)"
    )
    head = ["photos", "type right", "own leaf", "best expert", "lost (dB)", "over finest"]
    return [title, "", *table([*head, "load", "oracle's load", "path"], rows), ""]


def _routed(figures: list[dict[str, Any]]) -> list[str]:
    correct = [[case[key] for case in figures if case[key] is not None] for key in SHARES]
    shares = (f"{mean(values):.0%}" if values else "" for values in correct)  # a mixture has no one type
    decibels = (f"{mean(case[key] for case in figures):.2f}" for key in ("regret_db", "over_finest_db"))
    levels = (
        " / ".join(
            f"{scale * mean(level):.{digits}f}"
            for level in zip(*(case[key] for case in figures), strict=True)
        )
        for key, scale, digits in (("practical_load", 100, 0), ("expected_load", 100, 0), ("path_psnr", 1, 2))
    )
    return [*shares, *decibels, *levels]


def uncertainty(measured: dict[str, Any]) -> list[str]:
    """Whether e_gran means anything, per task, over all photos of its strengths.

    That is its rank correlation with the estimate's true error, and how well it tells strengths beyond the
    trained range from trained ones.
    """
    rows = []
    pooled: dict[str, list[list[float]]] = {"in": [], "out": []}
    for task in Task:
        pairs = {
            band: [
                pair
                for case in cases(f"single-{band}")
                if case.tasks == (task,)
                for pair in measured.get(case.id, {}).get("uncertainty", [])
            ]
            for band in pooled
        }
        if pairs["in"] and pairs["out"]:
            rows.append([task.value, *_meaning(pairs)])
            for band, of_task in pairs.items():
                pooled[band] += of_task
    if not rows:
        return []
    rows.append(["all", *_meaning(pooled)])
    title = (
        "**What e_gran says** (*error*: Spearman correlation of log e_gran with the estimate's true error; "
        "*beyond*: area under the ROC curve of photos beyond the trained strengths against those within, and "
        "what the true error itself would reach there; *mean*: of log e_gran)"
    )
    head = ["task", "photos", "error", "beyond", "true error beyond", "mean within", "mean beyond"]
    return [title, "", *table(head, rows), ""]


def _meaning(pairs: dict[str, list[list[float]]]) -> list[str]:
    gran, error = zip(*pairs["in"], *pairs["out"], strict=True)
    beyond = [0] * len(pairs["in"]) + [1] * len(pairs["out"])
    rank = f"{spearmanr(gran, error)[0]:.2f}" if min(len(set(gran)), len(set(error))) > 1 else ""
    areas = (float(roc_auc_score(beyond, score)) for score in (gran, error))
    means = (mean(gran for gran, _ in of_band) for of_band in pairs.values())
    return [str(len(gran)), rank, *(f"{value:.2f}" for value in (*areas, *means))]


def overhead(measured: dict[str, Any] | None) -> list[str]:
    """What each part costs, its time as a share of the chosen expert's."""
    if not measured:
        return []
    chosen = next(row["seconds"] for row in measured["rows"] if row["part"] == "chosen expert")
    rows = [
        [
            row["part"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['megabytes']:.1f} MB",
            f"{row['gflops']:.1f}",
            f"{row['seconds'] / chosen:.2f}",
        ]
        for row in measured["rows"]
    ]
    side, device = (measured["about"][key] for key in ("side_px", "device"))
    title = (
        f"**What routing costs** for a photo of {side} x {side} on {device} (memory of the weights; time "
        "beside the chosen expert's, medians of one run)"
    )
    return [title, "", *table(["part", "parameters", "memory", "GFLOPs", "time"], rows), ""]


def shapes(measured: dict[str, Any] | None) -> list[str]:
    """Network shapes side by side: gain over the input per task at equal wall time."""
    if not measured:
        return []
    rows = measured["rows"]
    names, tasks = (list(dict.fromkeys(row[key] for row in rows)) for key in ("shape", "task"))
    gain = {(row["shape"], row["task"]): f"{row['psnr'] - row['input']:+.2f}" for row in rows}
    size = {row["shape"]: row["parameters"] for row in rows}
    seconds = {name: [row["seconds"] for row in rows if row["shape"] == name] for name in names}
    fastest = min(sum(times) / len(times) for times in seconds.values())
    body = [
        [
            name,
            f"{size[name] / 1e6:.2f} M",
            f"{sum(seconds[name]) / len(seconds[name]) / fastest:.1f} ×",
            *(gain.get((name, task), "") for task in tasks),
        ]
        for name in names
    ]
    title = (
        f"**Network shapes from scratch, {rows[0]['minutes']:.1f} minutes each** (gain over the input in dB "
        f"on {rows[0]['windows']} held-out windows per task; time to restore as a ratio)"
    )
    return [title, "", *table(["shape", "parameters", "time", *tasks], body), ""]


def ablation(measured: dict[str, Any] | None) -> list[str]:
    """What each part is worth: PSNR in and out of the trained range, and the levels' loads."""
    lines = []
    rows = measured["rows"] if measured else []
    for name in dict.fromkeys(row["table"] for row in rows):
        of_table = [row for row in rows if row["table"] == name]
        body = [
            [
                row["row"],
                *(f"{row[band]:.2f}" for band in ("in", "out")),
                *(" / ".join(map(str, row.get(f"load {band}", []))) for band in ("in", "out")),
            ]
            for row in of_table
        ]
        first = of_table[0]
        steps, minutes = (
            ", ".join(f"{n:g}" for n in (measured or {})["about"][key]) for key in ("steps", "minutes")
        )
        title = (
            f"**Ablation, {name}** (PSNR in dB on crops of held-out photos; input {first['input in']:.2f} "
            f"in, {first['input out']:.2f} out; by level at most {steps} steps and {minutes} minutes an "
            "expert; loads of the levels in percent)"
        )
        lines += [title, "", *table(["row", "in", "out", "load in", "load out"], body), ""]
    return lines


def insert(text: str, name: str, tables: str) -> str:
    """`text` with `tables` between the checkpoint's marks. Raises ValueError when a mark is missing."""
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in text or end not in text:
        raise ValueError(f"there is no place for the results of {name}: put {begin} and {end} there")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{tables}\n{end}{rest.partition(end)[2]}"


def documents() -> dict[Path, str]:
    """README and the shipped models' cards, each as it reads with the tables of the committed metrics.

    Raises ValueError when a mark is missing.
    """
    readme = LIBRARY_FOLDER.parent / "README.md"
    texts = {readme: readme.read_text(encoding="utf-8")}
    for name in shipped():
        metrics = json.loads((LIBRARY_FOLDER / name / "metrics.json").read_text())
        card = LIBRARY_FOLDER / name / "README.md"
        texts[readme] = insert(texts[readme], name, glance(metrics))
        texts[card] = insert(card.read_text(encoding="utf-8"), name, results(metrics))
    return texts


# From the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tables` on a command line."""
    parser.add_argument("--checkpoint", help="print the tables of this model instead")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail where a file is not current"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write what is not current, or print. Raises ValueError for bad input, and for what `--check` finds."""
    if arguments.checkpoint:
        metrics = json.loads((find_checkpoint(arguments.checkpoint) / "metrics.json").read_text())
        sys.stdout.write(results(metrics))
        return
    stale = {path: text for path, text in documents().items() if path.read_text(encoding="utf-8") != text}
    if arguments.check and stale:
        names = ", ".join(str(path) for path in stale)
        raise ValueError(f"not what metrics.json holds: {names}; python -m training tables writes them")
    for path, text in stale.items():
        atomic_write(path, text.encode())
    sys.stdout.write("".join(f"{path}: written\n" for path in stale) or "all tables are current\n")
