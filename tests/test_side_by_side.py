"""Lanes on the CPU: side by side equals alone and `train`, interrupted equals uninterrupted, budgets."""

import functools
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from training.build import loop, side_by_side
from training.build.loop import Budget, Learner, Progress, train
from training.build.side_by_side import CHUNK, Lane

BUDGET = Budget(steps=50, minutes=60, lr=0.02, ema=0.9)


def lane(folder: Path, seed: int, budget: Budget = BUDGET, stop_at: int = -1, bad_at: int = -1) -> Lane:
    """Least squares, y = the sum of three whole numbers; its windows are those numbers."""
    module = network(seed)
    steps = 0

    def loss_at(parameters: dict[str, Tensor], places: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt
        loss = loss_of(module, parameters, places)
        return loss * (math.nan if steps == bad_at else 1)

    return Lane(
        f"toy {seed}", module, loss_at, functools.partial(places_of, seed), budget, folder / f"{seed}.state"
    )


def network(seed: int) -> nn.Module:
    """Of the layers that experts have, in the layout in memory that theirs have."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 8, (2, 3), padding=1), nn.Tanh(), nn.Conv2d(8, 1, 3, padding=(0, 1)))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def loss_of(module: nn.Module, parameters: dict[str, Tensor], places: Tensor) -> Tensor:
    x = (places.float() / 10).reshape(-1, 3, 2, 2)
    return (functional_call(module, parameters, (x,)) - x.sum(1, keepdim=True)).square().mean()


def places_of(seed: int, chunk: int) -> np.ndarray:
    return np.random.default_rng((seed, chunk)).integers(0, 10, (CHUNK, 16, 12))


def alone(folder: Path, seed: int, budget: Budget, stop_at: int = -1) -> tuple[nn.Module, Progress]:
    """`train` on the windows that `lane` draws."""
    module = network(seed)

    def loss_at(step: int) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        chunk, number = divmod(step, CHUNK)
        return loss_of(
            module, dict(module.named_parameters()), torch.from_numpy(places_of(seed, chunk)[number])
        )

    learner = Learner("toy", module, loss_at, budget, folder / f"{seed}.state")
    train([learner], quiet=True)
    return module, learner.progress


def weights(one: Lane) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in one.module.state_dict().items()}


def test_side_by_side_equals_alone(tmp_path: Path) -> None:
    together = [lane(tmp_path / "together", seed) for seed in range(3)]
    before = [weights(one) for one in together]
    train(together, quiet=True)
    for seed, one in enumerate(together):
        alone = lane(tmp_path / "alone", seed)
        train([alone], quiet=True)
        torch.testing.assert_close(weights(one), weights(alone), rtol=0, atol=0)
        assert not torch.equal(before[seed]["0.weight"], weights(one)["0.weight"])
        assert one.progress.step == 50


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_lane_makes_the_steps_of_train(tmp_path: Path, optimizer: Literal["adamw", "muon"]) -> None:
    """Equal averaged weights after 200 steps; a lane's average had no warm-up and had hardly moved."""
    budget = Budget(steps=200, minutes=60, lr=0.02, optimizer=optimizer)
    one = lane(tmp_path / "lane", 1, budget)
    before = weights(one)
    train([one], quiet=True)
    module, progress = alone(tmp_path / "train", 1, budget)
    torch.testing.assert_close(weights(one), dict(module.state_dict()), rtol=0, atol=1e-6)
    assert one.progress.loss == pytest.approx(progress.loss, rel=1e-5)
    assert (weights(one)["0.weight"] - before["0.weight"]).abs().max() > 0.05


@pytest.mark.parametrize("first", ["lane", "train"])
def test_what_one_began_the_other_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Averages of two kinds in one file, and moments laid out in memory as no weight is, were continued."""
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0)
    budget = Budget(steps=200, minutes=60, lr=0.02)
    whole, progress = alone(tmp_path / "whole", 1, budget)
    with pytest.raises(KeyboardInterrupt):
        if first == "lane":
            train([lane(tmp_path, 1, budget, stop_at=101)], quiet=True)
        else:
            alone(tmp_path, 1, budget, stop_at=101)
    again = lane(tmp_path, 1, budget)
    assert 80 <= again.progress.step <= 101
    if first == "lane":
        module, rest = alone(tmp_path, 1, budget)
    else:
        train([again], quiet=True)
        module, rest = again.module, again.progress
    torch.testing.assert_close(dict(module.state_dict()), dict(whole.state_dict()), rtol=0, atol=1e-5)
    assert rest.step == 200 and rest.loss == pytest.approx(progress.loss, rel=1e-4)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(Lane, "rounds", 5)
    whole = lane(tmp_path / "whole", 1)
    train([whole], quiet=True)
    with pytest.raises(KeyboardInterrupt):
        train([lane(tmp_path, 1, stop_at=31)], quiet=True)
    again = lane(tmp_path, 1)
    assert 20 <= again.progress.step < 31
    train([again], quiet=True)
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=1e-6)


def test_a_finished_lane_is_not_trained_again_until_its_budget_grows(tmp_path: Path) -> None:
    train([lane(tmp_path, 1)], quiet=True)
    finished = lane(tmp_path, 1, stop_at=1)
    train([finished], quiet=True)
    longer = lane(tmp_path, 1, Budget(steps=80, minutes=60, lr=0.02, ema=0.9))
    train([longer], quiet=True)
    assert (finished.progress.step, longer.progress.step) == (50, 80)


def test_time_ends_a_lane_too(tmp_path: Path) -> None:
    one = lane(tmp_path, 1, Budget(steps=10**9, minutes=0.002, lr=0.02))
    train([one], quiet=True)
    assert one.progress.done
    assert one.progress.seconds >= 0.12


def test_windows_of_every_chunk_are_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "CHUNK", 20)
    one = lane(tmp_path, 1)
    seen: list[Tensor] = []
    loss_of = one.loss_of
    one.loss_of = lambda parameters, places: seen.append(places.clone()) or loss_of(parameters, places)
    train([one], quiet=True)
    drawn = [torch.from_numpy(one.places_of(step // 20)[step % 20]) for step in range(50)]
    assert torch.equal(torch.stack(seen), torch.stack(drawn))


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"toy 1: the loss became nan .* lower the learning rate"):
        train([lane(tmp_path, 1, bad_at=30)], quiet=True)
