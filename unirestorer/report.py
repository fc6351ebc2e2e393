"""What the pipeline decided about a photo, as plain data: the page's panels, `--report` and the API show
nothing else.
"""

from __future__ import annotations

from typing import Any

from unirestorer.degradation.recipe import caption_tasks
from unirestorer.pipeline import UniRestorer
from unirestorer.types import Decision, Task


def describe(model: UniRestorer, decision: Decision, index: int = 0) -> dict[str, Any]:
    """JSON data about photo `index` of the batch that was decided on.

    Probabilities are 0 to 1, percentiles 0 to 100, times seconds. "tasks" are those of the leaves, "seen"
    those of the captions: where leaves mix several degradations, only the latter say which ones a photo has.
    """
    tree, route, estimate = model.tree, decision.route, decision.estimate

    def node(expert: int, probability: float) -> dict[str, Any]:
        return {"expert": tree.expert_names[expert], "name": tree.words(expert), "probability": probability}

    leaf, level, expert = int(route.leaf[index]), int(route.level[index]), int(route.expert[index])
    leaf_probs, level_probs = route.leaf_probs[index].cpu(), route.level_probs[index].cpu()
    path = tree.expert_table[leaf].tolist()
    e = estimate.e[index]
    probabilities = model.extractor.caption_probs(e[None])[0].tolist()
    captions = list(zip(model.extractor.captions, probabilities, strict=True))
    seen = dict.fromkeys(Task, 0.0)
    for caption, probability in captions:
        for task in caption_tasks(caption):
            seen[task] += probability
    nearest = sorted(captions, key=lambda caption: caption[1], reverse=True)[:3]
    log_e_gran = float(estimate.log_e_gran[index].mean())
    data: dict[str, Any] = {
        "tasks": {task.value: prob for task, prob in tree.leaf_task_probs(leaf_probs).items()},
        "seen": {task.value: prob for task, prob in seen.items()},
        "captions": [{"text": text, "probability": p} for text, p in nearest],
        "leaves": [node(tree.offsets[-1] + i, p) for i, p in enumerate(leaf_probs.tolist())],
        "levels": [{"level": i, **node(path[i], p)} for i, p in enumerate(level_probs.tolist())],
        "leaf": leaf,
        "level": level,
        "expert": tree.expert_names[expert],
        "expert_name": tree.words(expert),
        "forced": route.forced,
        "log_e_gran": log_e_gran,
        "seconds": dict(decision.seconds),
        "device": model.device.type,
        "checkpoint": model.name,
    }
    if model.map is not None:
        place = model.map.place(e.cpu().numpy())
        x, y = place.xy
        data |= {
            "e_gran_percentile": model.map.gran_percentile(log_e_gran),
            "distance": place.distance,
            "distance_percentile": place.distance_percentile,
            "map": {"x": x, "y": y, "spread": place.spread, "neighbors": list(place.neighbors)},
        }
    return data


def percent(probability: float) -> str:
    """A probability in whole percent, for a terminal."""
    return f"{100 * probability:.0f} %"
