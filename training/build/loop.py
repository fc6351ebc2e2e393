"""The one optimisation loop: AdamW, warm-up and cosine, moving average, resumable at any moment.

A budget is a number of steps and a number of minutes; the schedule follows whichever will end first. State is
one safetensors file, replaced atomically once a minute. Batches are functions of the step's number, so a
resumed run sees the batches that it would have seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from unirestorer.files import atomic_write

SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class Budget:
    """When a training ends and how its learning rate gets there."""

    steps: int
    minutes: float
    lr: float
    weight_decay: float = 1e-4
    warmup: float = 0.02  # share of the budget
    final_lr: float = 0.01  # share of lr at the end
    ema: float = 0.999
    clip: float = 1.0  # largest norm of the gradient


@dataclass
class Progress:
    """Where a training stands; saved with its state."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan  # running mean
    done: bool = False

    def share(self, budget: Budget) -> float:
        """Spent share of the budget, 0 to 1."""
        return min(1.0, max(self.step / budget.steps, self.seconds / (60 * budget.minutes)))


def learning_rate(share: float, budget: Budget) -> float:
    """Linear warm-up, then half a cosine down to `final_lr` times the peak."""
    if share < budget.warmup:
        return budget.lr * (share / budget.warmup * 0.99 + 0.01)
    phase = (share - budget.warmup) / (1 - budget.warmup)
    return budget.lr * (budget.final_lr + (1 - budget.final_lr) * 0.5 * (1 + math.cos(math.pi * phase)))


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU and on a CPU with matrix units (AMX); elsewhere it costs time, and float32 is kept.

    Without AMX an expert's step takes more than twice as long in bfloat16, and compiled ones were seen to
    give NaN.
    """
    fast = device.type != "cpu" or torch.cpu._is_amx_tile_supported()  # torch has no public name for it
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def train(
    name: str,
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    budget: Budget,
    state: Path,
    writer: SummaryWriter | None = None,
    *,
    quiet: bool = False,
) -> Progress:
    """Minimise `loss_at(step)` over the parameters of `module`; afterwards `module` holds the averaged
    weights.

    Starts from `module`'s weights, or from `state` where that file holds an unfinished or finished run. The
    clock leaves out the first step after a start, which may compile. Raises ValueError when `state` belongs
    to other shapes.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=budget.lr, weight_decay=budget.weight_decay, betas=(0.9, 0.99)
    )
    average = {key: value.detach().clone() for key, value in module.state_dict().items()}
    progress = Progress()
    if state.is_file():
        progress = load_state(state, module, average, optimizer)
        progress.done = progress.share(budget) >= 1  # or the budget has grown
    bar = tqdm(
        total=100, desc=name, unit="%", disable=quiet, bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}"
    )
    saved = time.monotonic()
    module.train()
    first = True
    while progress.share(budget) < 1:
        start = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress.share(budget), budget)
        loss = loss_at(progress.step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, budget.clip)
        optimizer.step()
        _average(average, module, min(budget.ema, (1 + progress.step) / (10 + progress.step)))
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(
                f"{name}: the loss became {value} at step {progress.step}; lower the learning rate"
            )
        progress.step += 1
        progress.seconds += 0.0 if first else time.monotonic() - start
        first = False
        progress.loss = value if math.isnan(progress.loss) else 0.99 * progress.loss + 0.01 * value
        if progress.step % 20 == 0:
            _report(bar, progress, budget)
            if writer:
                writer.add_scalar(f"{name}/loss", value, progress.step)
                writer.add_scalar(f"{name}/lr", optimizer.param_groups[0]["lr"], progress.step)
        if time.monotonic() - saved > SAVE_EVERY_S:
            save_state(state, module, average, optimizer, progress)
            saved = time.monotonic()
    if not progress.done:
        progress.done = True
        save_state(state, module, average, optimizer, progress)
    _report(bar, progress, budget)
    bar.close()
    module.load_state_dict(average)
    module.eval()
    return progress


def _report(bar: tqdm, progress: Progress, budget: Budget) -> None:
    share = progress.share(budget)
    left = progress.seconds / share * (1 - share) if share else 0.0
    bar.n = round(100 * share, 1)
    bar.set_postfix_str(
        f"step {progress.step}, loss {progress.loss:.4f}, "
        f"{progress.step / max(progress.seconds, 1e-9):.1f} steps/s, "
        f"{left / 60:.1f} min left"
    )


@torch.no_grad()
def _average(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def save_state(
    path: Path,
    module: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write weights, their average, AdamW's moments and the progress as one file, atomically.

    A finished training keeps its average alone; with a larger budget it goes on from there.
    """
    tensors = {f"average.{key}": value for key, value in average.items()}
    if not progress.done:
        tensors |= {f"model.{key}": value for key, value in module.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    data = save(tensors, metadata={"progress": json.dumps(asdict(progress))})
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)


def load_state(
    path: Path, module: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> Progress:
    """Undo `save_state`. Raises ValueError when the file was written for other shapes."""
    try:
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        module.load_state_dict(_part(tensors, "model.") or _part(tensors, "average."))
        for key, value in _part(tensors, "average.").items():
            average[key].copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(tensors, "optimizer.").items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        names = {f"average.{key}" for key in average}
        complete = len(moments) == len(optimizer.param_groups[0]["params"]) or not _part(tensors, "model.")
        if not (names <= set(tensors) and complete):
            raise KeyError("some tensors are missing")
        if moments:
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
    except (RuntimeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} does not fit this training ({reason}): delete it to start anew") from None
    return progress


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
