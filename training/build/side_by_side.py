"""Experts side by side on a GPU, which one small network alone leaves mostly idle.

Each expert has a lane: a stream of its own, and its whole step (cutting the windows, then `Learner.step`)
recorded once as a CUDA graph, so that a round over all lanes costs the processor a few calls.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.build.loop import Budget, Learner

CHUNK = 500  # steps whose windows are drawn at once
UNRECORDED = 3  # first steps of a lane, which choose kernels and compile


class Lane(Learner):
    """A `Learner` whose step is recorded on a GPU. `loss_of(parameters, places)` is its loss on windows
    (B, P) of a corpus, and `places_of(chunk)` draws those of `CHUNK` steps: (CHUNK, B, P).
    """

    rounds = 20

    def __init__(
        self,
        name: str,
        module: nn.Module,
        loss_of: Callable[[dict[str, Tensor], Tensor], Tensor],
        places_of: Callable[[int], np.ndarray],
        budget: Budget,
        state: Path,
        check: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(name, module, self._loss_here, budget, state, check)
        self.loss_of, self.places_of = loss_of, places_of
        self.parameters: dict[str, Tensor] = dict(module.named_parameters())
        self.places = torch.zeros(np.shape(places_of(0)), dtype=torch.long, device=self.loss.device)
        self.cursor = torch.zeros(1, dtype=torch.long, device=self.loss.device)
        self.chunk = -1
        self.stream = torch.cuda.Stream() if self.on_gpu else None
        self.graph: torch.cuda.CUDAGraph | None = None

    def _loss_here(self, _: int) -> Tensor:
        return self.loss_of(self.parameters, self.places[self.cursor][0])

    def start(self) -> None:
        """The first steps one by one, then, on a GPU, the recording of all that follow."""
        self.evaluate()
        self.wait()
        for _ in range(UNRECORDED):
            self.advance()
        self.wait()
        if self.on_gpu:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                self.step()
            self.graph = graph

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
            super().advance()

    def step(self) -> None:
        if self.graph:
            self.graph.replay()
        else:
            super().step()
            self.cursor += 1
