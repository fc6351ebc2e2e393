"""Experts side by side on a GPU, which one small network alone leaves mostly idle.

Each expert has a lane: a stream of its own, and its whole step (cutting the windows, forward, backward,
AdamW and the moving average) recorded once as a CUDA graph, so that a round over all lanes costs the
processor a few calls. The schedule and the state's file are those of `training.build.loop`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.build import loop
from training.build.loop import Budget, Progress, learning_rate, load_state, save_state

CHUNK = 500  # steps whose windows are drawn at once
ROUNDS = 20  # steps of every lane between two looks at the clock
UNRECORDED = 3  # first steps of a lane, which choose kernels and compile


class Lane:
    """One expert in training. `loss_at(parameters, places)` is its loss on windows (B, P) of a corpus, and
    `places_of(chunk)` draws those of `CHUNK` steps: (CHUNK, B, P).

    Starts from the module's weights, or from `state` where that file holds a begun or finished training;
    raises ValueError when it belongs to other shapes.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        loss_at: Callable[[dict[str, Tensor], Tensor], Tensor],
        places_of: Callable[[int], np.ndarray],
        budget: Budget,
        state: Path,
    ) -> None:
        self.name, self.module, self.budget, self.state = name, module.train(), budget, state
        self.loss_at, self.places_of = loss_at, places_of
        self.parameters: dict[str, Tensor] = dict(module.named_parameters())
        first = next(module.parameters())
        self.on_gpu = first.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=torch.tensor(budget.lr, device=first.device),
            weight_decay=budget.weight_decay,
            betas=(0.9, 0.99),
            capturable=self.on_gpu,
            fused=True,
        )
        self.average = {key: value.detach().clone() for key, value in module.state_dict().items()}
        self.progress = Progress()
        if state.is_file():
            self.progress = load_state(state, module, self.average, self.optimizer)
            self.progress.done = self.progress.share(budget) >= 1
        self.rate = self.optimizer.param_groups[0]["lr"]  # loading replaces it
        self.loss = torch.full((), math.nan, device=first.device)
        self.places = torch.zeros(np.shape(places_of(0)), dtype=torch.long, device=first.device)
        self.cursor = torch.zeros(1, dtype=torch.long, device=first.device)
        self.chunk = -1
        self.stream = torch.cuda.Stream() if self.on_gpu else None
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def running(self) -> bool:
        return self.progress.share(self.budget) < 1

    def start(self) -> None:
        """The first steps one by one, then, on a GPU, the recording of all that follow."""
        for _ in range(UNRECORDED):
            self.advance()
        if self.on_gpu:
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self._step()

    def advance(self) -> None:
        """One step, unless the budget's are done; on a GPU it is queued, not waited for."""
        if self.progress.step >= self.budget.steps:
            return
        with torch.cuda.stream(self.stream):  # no effect without one
            chunk, cursor = divmod(self.progress.step, CHUNK)
            if chunk != self.chunk:
                self.places.copy_(torch.from_numpy(self.places_of(chunk)))
                self.cursor.fill_(cursor)
                self.chunk = chunk
            self.rate.fill_(learning_rate(self.progress.share(self.budget), self.budget))
            if self.graph:
                self.graph.replay()
            else:
                self._step()
        self.progress.step += 1

    def _step(self) -> None:
        loss = self.loss_at(self.parameters, self.places[self.cursor][0])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), self.budget.clip)
        self.optimizer.step()
        with torch.no_grad():
            for key, value in self.parameters.items():
                self.average[key].lerp_(value, 1 - self.budget.ema)
            value = loss.detach()
            self.loss.copy_(torch.where(self.loss.isnan(), value, self.loss.lerp(value, 0.01)))
            self.cursor += 1

    def look(self, seconds: float) -> None:
        """Note time that all lanes spent together, and the loss. Raises RuntimeError for one not finite."""
        self.progress.seconds += seconds
        self.progress.loss = self.loss.item()
        if not math.isfinite(self.progress.loss):
            raise RuntimeError(
                f"{self.name}: the loss became {self.progress.loss} before step {self.progress.step}; lower "
                "the learning rate"
            )

    def save(self) -> None:
        save_state(self.state, self.module, self.average, self.optimizer, self.progress)


def train_together(title: str, lanes: Sequence[Lane], *, quiet: bool = False) -> None:
    """Train all lanes at once until each has spent its budget; afterwards their modules hold the averaged
    weights.

    A lane's minutes are wall time, which it shares with the others; starting is left out.
    """
    shape = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
    bar = tqdm(total=100, desc=title, unit="%", disable=quiet, bar_format=shape)
    for lane in lanes:
        if lane.running:
            lane.start()
    _wait(lanes)
    saved = clock = time.monotonic()
    while running := [lane for lane in lanes if lane.running]:
        for _ in range(ROUNDS):
            for lane in running:
                lane.advance()
        _wait(lanes)
        now = time.monotonic()
        for lane in running:
            lane.look(now - clock)
        clock = now
        slowest = min(running, key=lambda lane: lane.progress.share(lane.budget)).progress
        bar.n = round(100 * min(lane.progress.share(lane.budget) for lane in lanes), 1)
        bar.set_postfix_str(
            f"{len(running)} experts, step {slowest.step}, loss {slowest.loss:.4f}, "
            f"{sum(lane.progress.step for lane in running) / slowest.seconds:.0f} steps/s"
        )
        if now - saved > loop.SAVE_EVERY_S:
            for lane in running:
                lane.save()
            saved = time.monotonic()
    for lane in lanes:
        if not lane.progress.done:
            lane.progress.done = True
            lane.save()
        lane.module.load_state_dict(lane.average)
        lane.module.eval()
    bar.close()


def _wait(lanes: Sequence[Lane]) -> None:
    if any(lane.on_gpu for lane in lanes):
        torch.cuda.synchronize()
