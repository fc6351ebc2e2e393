"""Measure a checkpoint on the protocol: input, ALL, auto, instruction and oracle, photo by photo.

    python -m training evaluate --checkpoint DIR --data DIR [--layers DIR] --groups single-in --limit 8

What is measured goes to the checkpoint's `metrics.json` after every case, beside what is there, and to the
terminal as Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from training.measure.machine import describe_machine
from training.measure.protocol import GROUPS, Case, Sample, cases, missing, samples
from unirestorer.checkpoint import Checkpoint, find_checkpoint
from unirestorer.experts import ExpertBank
from unirestorer.files import atomic_write
from unirestorer.imaging import from_uint8, to_uint8
from unirestorer.metrics import psnr, ssim
from unirestorer.tree import DegradationTree
from unirestorer.types import Estimate, Route, Task

if TYPE_CHECKING:
    from unirestorer.pipeline import UniRestorer

KEY = "evaluation"  # in metrics.json
# What a photo is scored as: given, or restored in one of these ways; "longer" only where it was measured.
WAYS = ("input", "all", "longer", "auto", "instruction", "oracle")
HEADS = {way: way for way in WAYS} | {"all": "ALL", "longer": "ALL, longer"}
TIE_DB = 0.05  # two experts within this PSNR are equally good
WORST = 5  # photos per case that are named
# a photo is counted in parts
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
ALL_EXPERT = 0
LONGER = -1  # in place of an expert's number: ALL trained as long as a leaf and its ancestors together
ROUTING_HEAD = (
    *("case", "type", "own leaf", "best expert"),
    *("regret (dB)", "load", "expected load", "log e_gran"),
)
AVERAGES: dict[str, tuple[Task, ...]] = {  # as in the paper's Table 1
    "average of 3": (Task.DERAIN, Task.DEHAZE, Task.DENOISE),
    "average of 5": (Task.DERAIN, Task.DEHAZE, Task.DENOISE, Task.DEBLUR, Task.LOWLIGHT),
    "average of 7": tuple(Task),
}


@dataclass
class Photo:
    """One photo on its way through the model. Images are (H, W, 3) uint8, so that a case fits in memory."""

    sample_name: str
    steps: Any  # what photos under one recipe share; None where no recipe made it
    clean: np.ndarray
    degraded: np.ndarray
    estimate: Estimate
    auto: Route
    instruction: Route | None  # None where no task is named
    own_leaf: int | None = None
    error: float | None = None  # of the estimate: |u - e_deg|, root mean square, standardised
    outputs: dict[int, np.ndarray] = field(default_factory=dict)  # by expert, and by LONGER
    psnr: dict[int, float] = field(default_factory=dict)


def evaluate(
    model: UniRestorer,
    data_dir: str | Path,
    out: Path | None = None,
    groups: Sequence[str] = (),
    *,
    layers: str | Path | None = None,
    limit: int | None = None,
    about: dict[str, Any] | None = None,
    longer: ExpertBank | None = None,
) -> dict[str, Any]:
    """Measure `model` on some groups (or ids) of the protocol's cases, by default on all.

    Returns {"runs": {time: machine and checkpoint}, "cases": {id: figures}, "skipped": {id: why}}. With
    `out`, a metrics.json, this becomes its key "evaluation" after every case; other keys stay, and so do
    cases that are not measured now, except those measured with other weights (`about["weights"]`); what was
    skipped is not stored. `limit` bounds the photos per case, `layers` is a folder of rain layers, `longer` a
    bank of one expert: ALL, trained as long as a leaf and its ancestors together. Raises ValueError for an
    unknown group, and if the data for every case is missing.
    """
    reasons = {case.id: missing(case, data_dir, layers) for case in cases(*groups)}
    todo = [case for case in cases(*groups) if reasons[case.id] is None]
    if not todo:
        raise ValueError(next(iter(reasons.values())))
    run = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    environment = {**(about or {}), **machine(model), "limit": limit}
    result = _earlier(out, environment.get("weights"))
    result["runs"][run] = environment
    result["skipped"] = {id_: reason for id_, reason in reasons.items() if reason}

    total = sum(min(case.count, limit or case.count) for case in todo)
    with tqdm(total=total, desc="evaluate", unit="photo", bar_format=BAR) as bar:
        for case in todo:
            bar.set_postfix_str(case.id)
            rendered = samples(case, data_dir, layers=layers, limit=limit)
            figures = evaluate_case(model, case, rendered, bar, longer)
            result["cases"][case.id] = {**figures, "run": run}
            used = {entry["run"] for entry in result["cases"].values()}
            result["runs"] = {name: entry for name, entry in result["runs"].items() if name in used}
            if out is not None:
                _merge(out, result)
    return result


@torch.inference_mode()
def evaluate_case(
    model: UniRestorer,
    case: Case,
    rendered: Iterable[Sample],
    bar: tqdm | None = None,
    longer: ExpertBank | None = None,
) -> dict[str, Any]:
    """The figures of one case: counts, seed, PSNR (dB, RGB) and SSIM by way, and how well it was routed.

    Each expert that any photo needs is run once per photo, expert by expert.
    """
    tasks = case.tasks if instruction_mask(model.tree, case.tasks) is not None else None
    photos = [_look(model, sample, tasks) for sample in rendered]
    find_own_leaves(model.tree, case, photos)
    centers = model.router.standardised(model.tree.centers[-1].to(photos[0].estimate.e))  # (leaves, D)
    for photo in photos:
        if photo.own_leaf is not None:
            gap = centers[photo.own_leaf] - photo.estimate.e_deg[0]
            photo.error = float(gap.square().mean().sqrt())

    needed: dict[int, list[Photo]] = defaultdict(list)
    for photo in photos:
        for expert in _experts_for(model.tree, photo):
            needed[expert].append(photo)
        if longer is not None:
            needed[LONGER].append(photo)
    steps = sum(map(len, needed.values()))
    for expert, users in sorted(needed.items()):
        for photo in users:
            x = from_uint8(photo.degraded)
            bank, number = (longer, 0) if longer and expert == LONGER else (model.experts, expert)
            output = bank(x, torch.tensor([number]))  # (1, 3, H, W)
            photo.outputs[expert] = to_uint8(output)
            photo.psnr[expert] = psnr(output, from_uint8(photo.clean))[0]
            if bar is not None:
                bar.update(len(photos) / steps)
    return _figures(model.tree, case, photos)


def _look(model: UniRestorer, sample: Sample, tasks: Sequence[Task] | None) -> Photo:
    estimate = model.estimate(sample.degraded)
    return Photo(
        sample.name,
        sample.recipe.steps if sample.recipe else None,
        to_uint8(sample.clean),
        to_uint8(sample.degraded),
        estimate,
        model.route(estimate, None),
        None if tasks is None else model.route(estimate, tasks),
    )


def instruction_mask(tree: DegradationTree, tasks: Sequence[Task]) -> Tensor | None:
    """The mask that names exactly `tasks`; None if there are none or the tree knows none of them."""
    if not tasks:
        return None
    try:
        return tree.mask(tasks)
    except ValueError:
        return None


def find_own_leaves(tree: DegradationTree, case: Case, photos: Sequence[Photo]) -> None:
    """Set each photo's `own_leaf`: nearest to the mean DR of the case's photos under one recipe.

    In a tree whose leaves serve one task each only the leaves of the case's tasks count. Undegraded photos
    have none.
    """
    single = all(len(tasks) == 1 for sets in tree.task_sets for tasks in sets)
    allowed = instruction_mask(tree, case.tasks) if single else None
    together: dict[Any, list[Photo]] = defaultdict(list)
    for photo in photos:
        if photo.steps != ():
            together[photo.steps].append(photo)
    for members in together.values():
        mean = torch.cat([photo.estimate.e for photo in members]).mean(0, keepdim=True)  # (1, D)
        leaf = int(tree.nearest_leaf(mean, allowed))
        for photo in members:
            photo.own_leaf = leaf


def _finest(tree: DegradationTree, route: Route) -> int:
    """The expert that G_d alone would choose: its leaf's own."""
    return int(tree.expert_table[int(route.leaf), -1])


def _experts_for(tree: DegradationTree, photo: Photo) -> set[int]:
    experts = {ALL_EXPERT, int(photo.auto.expert), _finest(tree, photo.auto)}
    if photo.instruction is not None:
        experts.add(int(photo.instruction.expert))
    if photo.own_leaf is not None:
        experts.update(tree.expert_table[photo.own_leaf].tolist())
    return experts


def _figures(tree: DegradationTree, case: Case, photos: Sequence[Photo]) -> dict[str, Any]:
    scores: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    expected, practical = np.zeros(tree.levels), np.zeros(tree.levels)
    regret, hits, own, types = [], [], [], []
    paths: list[list[float]] = []
    over_finest = [p.psnr[int(p.auto.expert)] - p.psnr[_finest(tree, p.auto)] for p in photos]
    for photo in photos:
        clean = from_uint8(photo.clean)
        chosen: dict[str, int] = {"all": ALL_EXPERT, "auto": int(photo.auto.expert)}
        if LONGER in photo.psnr:
            chosen["longer"] = LONGER
        if photo.instruction is not None:
            chosen["instruction"] = int(photo.instruction.expert)
        practical[int(photo.auto.level)] += 1
        if photo.own_leaf is not None:
            path = tree.expert_table[photo.own_leaf].tolist()
            chosen["oracle"] = max(path, key=lambda expert: photo.psnr[expert])
            best = photo.psnr[chosen["oracle"]]
            paths.append([photo.psnr[expert] for expert in path])
            tied = [level for level, expert in enumerate(path) if photo.psnr[expert] >= best - TIE_DB]
            expected[tied] += 1 / len(tied)
            regret.append(best - photo.psnr[chosen["auto"]])
            hits.append(regret[-1] <= TIE_DB)
            own.append(int(photo.auto.leaf) == photo.own_leaf)
        if len(case.tasks) == 1:
            sets = tree.task_sets[int(photo.auto.leaf)]
            types.append(max(sets, key=lambda tasks: sets[tasks]) == frozenset(case.tasks))
        similarity = {e: ssim(from_uint8(photo.outputs[e]), clean)[0] for e in set(chosen.values())}
        for way, expert in chosen.items():
            scores[way].append((photo.psnr[expert], similarity[expert]))
        degraded = from_uint8(photo.degraded)
        scores["input"].append((psnr(degraded, clean)[0], ssim(degraded, clean)[0]))
    return {
        "n": len(photos),
        "seed": case.seed,
        "strength": case.strength,
        "psnr": {way: _mean([p for p, _ in pairs]) for way, pairs in scores.items()},
        "ssim": {way: _mean([s for _, s in pairs]) for way, pairs in scores.items()},
        "type_accuracy": _mean(types),
        "leaf_accuracy": _mean(own),
        "routing_accuracy": _mean(hits),
        "regret_db": _mean(regret),
        "over_finest_db": _mean(over_finest),  # what G_g gains over G_d alone
        "path_psnr": [_mean(level) for level in zip(*paths, strict=True)] or None,  # ALL first
        "practical_load": [round(float(share), 4) for share in practical / max(practical.sum(), 1)],
        "expected_load": [round(float(share), 4) for share in expected / expected.sum()] if regret else None,
        "log_e_gran": _mean([_log_e_gran(photo) for photo in photos]),
        "uncertainty": [
            [round(_log_e_gran(photo), 4), round(photo.error, 4)]
            for photo in photos
            if photo.error is not None
        ],
        "worst": worst(tree, photos, [given for given, _ in scores["input"]]),
    }


def worst(tree: DegradationTree, photos: Sequence[Photo], inputs: Sequence[float]) -> list[dict[str, Any]]:
    """The photos that auto mode hurts most or helps least: PSNR (dB) as given and restored, and expert.

    `inputs` are the photos' PSNR as given, in their order.
    """
    rows = []
    for photo, given in zip(photos, inputs, strict=True):
        expert = int(photo.auto.expert)
        rows.append(
            {
                "photo": photo.sample_name,
                "input": round(given, 4),
                "auto": round(photo.psnr[expert], 4),
                "expert": tree.words(expert),
            }
        )
    return sorted(rows, key=lambda row: row["auto"] - row["input"])[:WORST]


def _log_e_gran(photo: Photo) -> float:
    return float(photo.estimate.log_e_gran.mean())


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


# What is stored


def machine(model: UniRestorer) -> dict[str, Any]:
    """The kind of machine that a model runs on, without its name."""
    return describe_machine(torch.device(getattr(model, "device", "cpu")))


def identity_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's name, a hash of all weights that results depend on, and its newest file's date."""
    files = {name: digest for name, digest in checkpoint.config.get("files", {}).items() if name != "map.npz"}
    listing = "\n".join(f"{name} {digest}" for name, digest in sorted(files.items()))
    written = max((checkpoint.folder / name).stat().st_mtime for name in files) if files else 0.0
    return {
        "checkpoint": checkpoint.folder.resolve().name,
        "checkpoint_date": datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%d"),
        "weights": hashlib.sha256(listing.encode()).hexdigest()[:16],
    }


def _earlier(out: Path | None, weights: str | None) -> dict[str, Any]:
    """What `out` holds of the same weights."""
    kept: dict[str, Any] = {"runs": {}, "cases": {}, "skipped": {}}
    earlier = _read(out).get(KEY, {}) if out is not None else {}
    protocol_ids = {case.id for case in cases()}
    for id_, entry in earlier.get("cases", {}).items():
        run = earlier.get("runs", {}).get(entry.get("run"), {})
        if id_ in protocol_ids and run.get("weights") == weights:
            kept["cases"][id_] = entry
            kept["runs"][entry["run"]] = run
    return kept


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: got damaged JSON ({error}), expected metrics, delete it") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: got {type(data).__name__}, expected an object of metrics, delete it")
    return data


def _merge(path: Path, result: dict[str, Any]) -> None:
    measured = {case.id: result["cases"][case.id] for case in cases() if case.id in result["cases"]}
    # What was skipped is left out: it names folders of this machine.
    store(path, KEY, {"runs": result["runs"], "cases": measured})


def store(path: Path, key: str, value: dict[str, Any]) -> None:
    """Set one key of a metrics.json; the others stay. Raises ValueError for a damaged file."""
    data = _read(path)
    data[key] = value
    text = json.dumps(data, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode())


# What is printed


def markdown(result: dict[str, Any], groups: Sequence[str] = ()) -> str:
    """Two tables per group: quality (PSNR dB / SSIM by way) and routing; then what was skipped."""
    by_id = {case.id: case for case in cases(*groups)}
    lines = []
    for group in GROUPS:
        measured = {
            id_: figures
            for id_, figures in result["cases"].items()
            if id_ in by_id and by_id[id_].group == group
        }
        if measured:
            lines += [f"### {group}", "", "PSNR (dB) / SSIM", "", *quality_table(measured, by_id)]
            lines += ["", "Routing", "", *table(ROUTING_HEAD, _routing(measured)), ""]
    for id_, reason in result["skipped"].items():
        lines.append(f"skipped {id_}: {reason}")
    return "\n".join(lines) + "\n"


def quality_table(measured: dict[str, Any], by_id: dict[str, Case]) -> list[str]:
    """PSNR / SSIM by case and way, and averages over the paper's sets of tasks, as Markdown."""
    longer = any(figures["psnr"].get("longer") is not None for figures in measured.values())
    ways = [way for way in WAYS if way != "longer" or longer]
    return table(["case", "photos", *(HEADS[way] for way in ways)], quality_rows(measured, by_id, ways))


def quality_rows(measured: dict[str, Any], by_id: dict[str, Case], ways: Sequence[str]) -> list[list[str]]:
    """Name, count of photos and PSNR / SSIM in some ways, for each case and then for averages."""
    rows = []
    for id_, figures in measured.items():
        cells = [_pair(figures["psnr"].get(way), figures["ssim"].get(way)) for way in ways]
        rows.append([id_.partition("/")[2], str(figures["n"]), *cells])
    tasks: dict[Task, list[dict[str, Any]]] = defaultdict(list)
    for id_, figures in measured.items():
        if len(by_id[id_].tasks) == 1 and by_id[id_].group != "real":
            tasks[by_id[id_].tasks[0]].append(figures)
    single = len(rows)
    for name, members in AVERAGES.items():
        if all(task in tasks for task in members):
            means = [
                [_average([_mean_of(tasks[task], key, way) for task in members]) for way in ways]
                for key in ("psnr", "ssim")
            ]
            rows.append([name, "", *(_pair(p, s) for p, s in zip(*means, strict=True))])
    if len(rows) == single > 1:  # groups that do not cover the paper's sets of tasks
        means = [[_mean_of(measured.values(), key, way) for way in ways] for key in ("psnr", "ssim")]
        rows.append(["average", "", *(_pair(p, s) for p, s in zip(*means, strict=True))])
    return rows


def _routing(measured: dict[str, Any]) -> list[list[str]]:
    rows = []
    for id_, figures in measured.items():
        accuracies = [figures[key] for key in ("type_accuracy", "leaf_accuracy", "routing_accuracy")]
        loads = [figures["practical_load"], figures["expected_load"]]
        rows.append(
            [
                id_.partition("/")[2],
                *("" if share is None else f"{share:.0%}" for share in accuracies),
                _number(figures["regret_db"]),
                *(
                    "" if load is None else " / ".join(f"{100 * share:.0f}" for share in load)
                    for load in loads
                ),
                _number(figures["log_e_gran"]),
            ]
        )
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, marks, *rows)]


def _mean_of(cases_: Iterable[dict[str, Any]], key: str, way: str) -> float | None:
    return _average([figures[key].get(way) for figures in cases_])


def _average(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) and numbers else None


def _pair(decibels: float | None, similarity: float | None) -> str:
    return "" if decibels is None or similarity is None else f"{decibels:.2f} / {similarity:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# From the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate` on a command line."""
    parser.add_argument("--checkpoint", required=True, help="folder, name in checkpoints/ or hub id")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with cbsd68/, sunhays/, rain100l/ ..."
    )
    parser.add_argument("--layers", type=Path, help="folder of rain layers, for the second generator of rain")
    parser.add_argument("--groups", default="", help=f"comma separated, of {', '.join(GROUPS)}; default all")
    parser.add_argument("--limit", type=int, help="photos per case, evenly spaced; default all")
    parser.add_argument(
        "--longer", type=Path, help="weights of ALL trained longer (`training longer`), to stand beside ALL"
    )
    parser.add_argument("--out", type=Path, help="metrics.json to write; default the checkpoint's own")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def longer_bank(checkpoint: Checkpoint, file: Path, device: torch.device) -> ExpertBank:
    """A bank of ALL's network with the weights in `file`.

    Raises ValueError when they are not those of that network.
    """
    network = checkpoint.expert("0-0")
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{file}: not the weights of this model's ALL ({str(error)[:120]})") from None
    return ExpertBank(("longer",), lambda _: network, device)


def run(arguments: argparse.Namespace) -> None:
    """Measure, store and print as `add_arguments` says. Raises ValueError for bad input."""
    from unirestorer.pipeline import UniRestorer

    folder = find_checkpoint(arguments.checkpoint)
    groups = [group for group in arguments.groups.split(",") if group]
    model = UniRestorer.from_pretrained(folder, device=arguments.device)
    result = evaluate(
        model,
        arguments.data,
        arguments.out or folder / "metrics.json",
        groups,
        layers=arguments.layers,
        limit=arguments.limit,
        about=identity_of(Checkpoint(folder)),
        longer=longer_bank(Checkpoint(folder), arguments.longer, model.device) if arguments.longer else None,
    )
    sys.stdout.write(markdown(result, groups))
