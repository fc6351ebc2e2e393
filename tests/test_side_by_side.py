"""Lanes on the CPU: side by side equals alone, interrupted equals uninterrupted, budgets, bad losses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from training.build import loop, side_by_side
from training.build.loop import Budget
from training.build.side_by_side import CHUNK, Lane, train_together

BUDGET = Budget(steps=50, minutes=60, lr=0.02, ema=0.9)


def lane(folder: Path, seed: int, budget: Budget = BUDGET, stop_at: int = -1, bad_at: int = -1) -> Lane:
    """Least squares, y = the sum of three whole numbers; its windows are those numbers."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    steps = 0

    def loss_at(parameters: dict[str, Tensor], places: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt
        x = places[:, :3].float() / 10
        loss = (functional_call(module, parameters, (x,)) - x.sum(1, keepdim=True)).square().mean()
        return loss * (math.nan if steps == bad_at else 1)

    def places_of(chunk: int) -> np.ndarray:
        return np.random.default_rng((seed, chunk)).integers(0, 10, (CHUNK, 16, 4))

    return Lane(f"toy {seed}", module, loss_at, places_of, budget, folder / f"{seed}.state")


def weights(one: Lane) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in one.module.state_dict().items()}


def test_side_by_side_equals_alone(tmp_path: Path) -> None:
    together = [lane(tmp_path / "together", seed) for seed in range(3)]
    before = [weights(one) for one in together]
    train_together("toys", together, quiet=True)
    for seed, one in enumerate(together):
        alone = lane(tmp_path / "alone", seed)
        train_together("toy", [alone], quiet=True)
        torch.testing.assert_close(weights(one), weights(alone), rtol=0, atol=0)
        assert not torch.equal(before[seed]["0.weight"], weights(one)["0.weight"])
        assert one.progress.step == 50


def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(side_by_side, "ROUNDS", 5)
    whole = lane(tmp_path / "whole", 1)
    train_together("toy", [whole], quiet=True)
    with pytest.raises(KeyboardInterrupt):
        train_together("toy", [lane(tmp_path, 1, stop_at=31)], quiet=True)
    again = lane(tmp_path, 1)
    assert 20 <= again.progress.step < 31
    train_together("toy", [again], quiet=True)
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=1e-6)


def test_a_finished_lane_is_not_trained_again_until_its_budget_grows(tmp_path: Path) -> None:
    train_together("toy", [lane(tmp_path, 1)], quiet=True)
    finished = lane(tmp_path, 1, stop_at=1)
    train_together("toy", [finished], quiet=True)
    longer = lane(tmp_path, 1, Budget(steps=80, minutes=60, lr=0.02, ema=0.9))
    train_together("toy", [longer], quiet=True)
    assert (finished.progress.step, longer.progress.step) == (50, 80)


def test_time_ends_a_lane_too(tmp_path: Path) -> None:
    one = lane(tmp_path, 1, Budget(steps=10**9, minutes=0.002, lr=0.02))
    train_together("toy", [one], quiet=True)
    assert one.progress.done
    assert one.progress.seconds >= 0.12


def test_windows_of_every_chunk_are_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "CHUNK", 20)
    one = lane(tmp_path, 1)
    seen: list[Tensor] = []
    loss_at = one.loss_at
    one.loss_at = lambda parameters, places: seen.append(places.clone()) or loss_at(parameters, places)
    train_together("toy", [one], quiet=True)
    drawn = [torch.from_numpy(one.places_of(step // 20)[step % 20]) for step in range(50)]
    assert torch.equal(torch.stack(seen), torch.stack(drawn))


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"toy 1: the loss became nan .* lower the learning rate"):
        train_together("toy", [lane(tmp_path, 1, bad_at=30)], quiet=True)
