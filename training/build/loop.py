"""The one optimisation loop: AdamW or Muon, warm-up and cosine, moving average, resumable at any moment.

A budget is a number of steps and a number of minutes; the schedule follows whichever will end first. State is
one safetensors file, replaced atomically every five minutes; the averaged weights are then measured, where
that is asked for. Batches are functions of the step's number, so a resumed run sees the batches that it would
have seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.build.muon import Muon
from unirestorer.files import atomic_write

SAVE_EVERY_S = 300.0  # between two states, and two points of the held-out curve
REPORT_EVERY = 20  # steps between two points in TensorBoard
FLAT_DB = 0.02  # a held-out curve that gains less is flat
FLAT_POINTS = 3  # that say so, at least

Curve = list[tuple[int, float, float]]  # step, minutes, held-out value in dB


@dataclass(frozen=True)
class Budget:
    """When a training ends, and how it gets there."""

    steps: int
    minutes: float
    lr: float
    weight_decay: float = 1e-4
    warmup: float = 0.02  # share of the budget
    final_lr: float = 0.01  # share of lr at the end
    ema: float = 0.999
    clip: float = 1.0  # largest norm of the gradient
    optimizer: Literal["adamw", "muon"] = "adamw"


@dataclass
class Progress:
    """Where a training stands; saved with its state."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan  # running mean
    done: bool = False
    curve: Curve = field(default_factory=list)  # of the averaged weights

    def share(self, budget: Budget) -> float:
        """Spent share of the budget, 0 to 1."""
        return min(1.0, max(self.step / budget.steps, self.seconds / (60 * budget.minutes)))

    def over(self, budget: Budget) -> bool:
        """Whether the budget is spent, or its second half brings nothing: see `is_flat`. In the first half
        the rate is too high to tell: a curve that stands still there rises when the rate falls.
        """
        share = self.share(budget)
        return share >= 1 or (share > 0.5 and is_flat(self.curve))


def is_flat(curve: Curve) -> bool:
    """Whether none of at least `FLAT_POINTS` values in the last fifth of the steps so far is `FLAT_DB` above
    the last value before it.
    """
    before = [value for step, _, value in curve if step <= 0.8 * curve[-1][0]]
    since = [value for step, _, value in curve if step > 0.8 * curve[-1][0]]
    return bool(before) and len(since) >= FLAT_POINTS and max(since) < before[-1] + FLAT_DB


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


class Learner:
    """A network in training on `loss_at(step)`, with its average, optimiser, progress and file of state.

    Starts from the module's weights, or from `state` where that file holds a begun or finished training;
    raises ValueError when it belongs to other shapes. `check`, if there is one, says how good the module is,
    in dB: it is called while that holds the averaged weights.
    """

    rounds = 1  # steps between two looks at the clock

    def __init__(
        self,
        name: str,
        module: nn.Module,
        loss_at: Callable[[int], Tensor],
        budget: Budget,
        state: Path,
        check: Callable[[], float] | None = None,
    ) -> None:
        self.name, self.module, self.loss_at = name, module.train(), loss_at
        self.budget, self.state, self.check = budget, state, check
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        device = self.trained[0].device
        self.on_gpu = device.type == "cuda"
        # A recorded step reads these again each time it is replayed.
        self.rate, self.decay = torch.zeros((), device=device), torch.zeros((), device=device)
        self.optimizer = _optimizer(self.trained, self.rate, budget)
        self.average = {key: value.detach().clone() for key, value in module.state_dict().items()}
        self.progress = Progress()
        if state.is_file():
            self.progress = load_state(state, module, self.average, self.optimizer)
            self.progress.done = self.progress.over(budget)  # or the budget has grown
        self.loss = torch.full((), self.progress.loss, device=device)  # running mean

    @property
    def running(self) -> bool:
        return not self.progress.over(self.budget)

    def start(self) -> None:
        """What no clock counts: the first held-out value, and the first step, which may compile."""
        self.evaluate()
        self.advance()

    def advance(self) -> None:
        """One step."""
        self.schedule()
        self.step()
        self.progress.step += 1

    def schedule(self) -> None:
        """Set the learning rate of the next step, and how much of the average stays."""
        step = self.progress.step
        self.rate.fill_(learning_rate(self.progress.share(self.budget), self.budget))
        self.decay.fill_(min(self.budget.ema, (1 + step) / (10 + step)))

    def step(self) -> None:
        """Loss, gradient, new weights and their average: what a GPU can record and replay."""
        loss = self.loss_at(self.progress.step)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.budget.clip)
        self.optimizer.step()
        with torch.no_grad():
            fresh = 1 - self.decay
            for key, value in self.module.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, fresh)
                else:
                    self.average[key].copy_(value)
            value = loss.detach()
            self.loss.copy_(torch.where(self.loss.isnan(), value, self.loss.lerp(value, 0.01)))

    def look(self, seconds: float) -> None:
        """Note time that was spent, and the loss. Raises RuntimeError for one that is not finite."""
        self.progress.seconds += seconds
        self.progress.loss = self.loss.item()
        if not math.isfinite(self.progress.loss):
            raise RuntimeError(
                f"{self.name}: the loss became {self.progress.loss} before step {self.progress.step}; lower "
                "the learning rate"
            )

    @torch.no_grad()
    def evaluate(self) -> None:
        """Add the held-out value of the averaged weights to the curve, unless it is there."""
        step, curve = self.progress.step, self.progress.curve
        if self.check is None or (curve and curve[-1][0] == step):
            return
        weights = {key: value.clone() for key, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.average)
        self.module.eval()
        curve.append((step, self.progress.seconds / 60, self.check()))
        self.module.load_state_dict(weights)
        self.module.train()
        self.wait()  # steps may be on another stream

    def wait(self) -> None:
        """Until a GPU has done what is queued."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def save(self) -> None:
        self.evaluate()
        save_state(self.state, self.module, self.average, self.optimizer, self.progress)

    def finish(self) -> None:
        """Save what is done, and put the averaged weights into the module."""
        if not self.progress.done:
            self.progress.done = True
            self.save()
        self.module.load_state_dict(self.average)
        self.module.eval()


def _optimizer(parameters: list[nn.Parameter], rate: Tensor, budget: Budget) -> torch.optim.Optimizer:
    if budget.optimizer == "muon":
        return Muon(parameters, rate, budget.weight_decay)
    return torch.optim.AdamW(
        parameters, rate, (0.9, 0.99), weight_decay=budget.weight_decay, capturable=rate.is_cuda, fused=True
    )


def train(learners: Sequence[Learner], *, writer: SummaryWriter | None = None, quiet: bool = False) -> None:
    """Train all at once until the budget of each is spent; afterwards their modules hold the averaged
    weights.

    A learner's minutes are wall time, which it shares with the others; starting, saving and evaluating are
    left out.
    """
    title = " to ".join(dict.fromkeys((learners[0].name, learners[-1].name)))
    shape = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
    bar = tqdm(total=100, desc=title, unit="%", disable=quiet, bar_format=shape)
    saved = time.monotonic()
    for learner in learners:
        if learner.running:
            learner.start()
            learner.look(0.0)
    while running := [learner for learner in learners if learner.running]:
        start = time.monotonic()
        if start - saved > SAVE_EVERY_S:
            for learner in running:
                learner.save()
            saved = start = time.monotonic()
        for _ in range(running[0].rounds):
            for learner in running:
                learner.advance()
        running[0].wait()
        seconds = time.monotonic() - start
        for learner in running:
            learner.look(seconds)
            if writer and learner.progress.step % REPORT_EVERY == 0:
                writer.add_scalar(f"{learner.name}/loss", learner.progress.loss, learner.progress.step)
                writer.add_scalar(f"{learner.name}/lr", learner.rate.item(), learner.progress.step)
        _report(bar, learners)
    for learner in learners:
        learner.finish()
    _report(bar, learners)
    bar.close()


def _report(bar: tqdm, learners: Sequence[Learner]) -> None:
    slowest = min(learners, key=lambda learner: learner.progress.share(learner.budget))
    progress, share = slowest.progress, slowest.progress.share(slowest.budget)
    rate = sum(learner.progress.step for learner in learners) / max(progress.seconds, 1e-9)
    bar.set_postfix_str(
        f"step {progress.step}, loss {progress.loss:.4f}, {rate:.1f} steps/s, "
        f"{progress.seconds / share * (1 - share) / 60:.1f} min left",
        refresh=False,
    )
    bar.update(100 * share - bar.n)  # which draws it now and then


def save_state(
    path: Path,
    module: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write weights, their average, the optimiser's moments and the progress as one file, atomically.

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
    """Undo `save_state`, on whatever device. Raises ValueError when the file was written for other shapes or
    another optimiser.
    """
    parameters: list[Tensor] = optimizer.param_groups[0]["params"]
    try:
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        progress.curve = [(step, minutes, value) for step, minutes, value in progress.curve]
        weights = _part(tensors, "model.")
        module.load_state_dict(weights or _part(tensors, "average."))
        for key, value in average.items():
            value.copy_(tensors[f"average.{key}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(tensors, "optimizer.").items():
            index, _, name = key.partition(".")
            # As its parameter lies in memory: fused steps count on that.
            value = torch.empty_like(parameters[int(index)]).copy_(value) if value.ndim else value.clone()
            moments.setdefault(int(index), {})[name] = value.to(parameters[int(index)].device)
        if weights and len(moments) < len(parameters):
            raise KeyError("some tensors are missing")
        if moments and isinstance(optimizer, torch.optim.AdamW) != ("exp_avg" in moments[0]):
            raise KeyError(f"its optimiser was not {type(optimizer).__name__}")
        optimizer.state.update({parameters[index]: values for index, values in moments.items()})
    except (RuntimeError, IndexError, KeyError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} does not fit this training ({reason}): delete it to start anew") from None
    return progress


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
