"""The training loop: interrupted equals uninterrupted, schedule, average, held-out curve, bad states."""

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from training.build import loop
from training.build.loop import Budget, Curve, Learner, Progress, is_flat, learning_rate

STEPS = 40
FOREIGN = "(?s)state does not fit this training .* delete it to start anew"
BUDGET = Budget(STEPS, minutes=60, lr=0.02, warmup=0.1, ema=0.9)


def train(
    name: str,
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    budget: Budget,
    state: Path,
    check: Callable[[], float] | None = None,
) -> Progress:
    learner = Learner(name, module, loss_at, budget, state, check)
    loop.train([learner], quiet=True)
    return learner.progress


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1))


def regression(
    module: nn.Module, stop_at: int = -1, seen: list[int] | None = None
) -> Callable[[int], Tensor]:
    """Least squares on batches that follow from the step's number; Ctrl-C at step `stop_at`."""

    def loss_at(step: int) -> Tensor:
        if seen is not None:
            seen.append(step)
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        return (module(x) - x[:, :1] * x[:, 1:2] - 0.5).square().mean()

    return loss_at


def run(state: Path, budget: Budget = BUDGET, stop_at: int = -1) -> tuple[nn.Module, Progress, list[int]]:
    module, seen = network(), []
    progress = train("toy", module, regression(module, stop_at, seen), budget, state)
    return module, progress, seen


def metadata(state: Path) -> dict:
    with safe_open(state, "pt") as file:
        return json.loads(file.metadata()["progress"])


def assert_same(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=1e-6)


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every step instead of every five minutes."""
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize(
    ("optimizer", "stops"),
    [("adamw", [1]), ("adamw", [17]), ("adamw", [STEPS - 1]), ("adamw", [5, 6, 30]), ("muon", [17])],
    ids=str,
)
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, optimizer: Literal["adamw", "muon"], stops: list[int]
) -> None:
    budget = replace(BUDGET, optimizer=optimizer)
    whole, progress, seen = run(tmp_path / "whole", budget)
    assert seen == list(range(STEPS))
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", budget, stop_at=stop)
        assert metadata(tmp_path / "parts")["step"] == stop
    module, again, seen = run(tmp_path / "parts", budget)
    assert seen == list(range(stops[-1], STEPS))
    assert_same(module, whole)
    assert again.step == progress.step == STEPS
    assert again.loss == pytest.approx(progress.loss, abs=1e-6)


def test_without_a_save_the_run_starts_anew_and_still_agrees(tmp_path: Path) -> None:
    """A kill before the first save loses those steps, nothing else."""
    whole, _, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop_at=20)
    assert not (tmp_path / "parts").exists()
    assert_same(run(tmp_path / "parts")[0], whole)


@pytest.mark.usefixtures("save_always")
def test_a_save_that_was_cut_off_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a save raises, and the run goes on from the last whole state."""
    whole, _, _ = run(tmp_path / "whole")
    real, calls = loop.atomic_write, []

    def third_fails(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(loop, "atomic_write", third_fails)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "parts")
    monkeypatch.setattr(loop, "atomic_write", real)
    assert metadata(tmp_path / "parts")["step"] == 2
    assert_same(run(tmp_path / "parts")[0], whole)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    whole, progress, _ = run(tmp_path / "state")
    assert progress.done
    module, again, seen = run(tmp_path / "state")
    assert seen == []
    assert (again.step, again.done) == (STEPS, True)
    assert_same(module, whole)
    assert not module.training


def test_training_improves_and_ends_in_evaluation_mode(tmp_path: Path) -> None:
    module, progress, _ = run(tmp_path / "state", Budget(400, 60, 0.02))
    loss_at = regression(module)
    before = network().eval()
    with torch.no_grad():
        assert float(loss_at(9999)) < 0.5 * float(regression(before)(9999))
    assert progress.loss < 1
    assert not module.training


def test_a_budget_in_minutes_ends_in_time(tmp_path: Path) -> None:
    start = time.monotonic()
    module = network()
    fast = regression(module)

    def slow(step: int) -> Tensor:
        time.sleep(0.3 if step == 0 else 0.005)  # the first step, which may compile, is not counted
        return fast(step)

    progress = train("toy", module, slow, Budget(10**9, 0.5 / 60, 0.01), tmp_path / "state")
    assert 0.5 <= progress.seconds < 2
    assert time.monotonic() - start > 0.75
    assert progress.step < 200
    assert progress.done


def test_a_finished_run_goes_on_under_a_larger_budget(tmp_path: Path) -> None:
    run(tmp_path / "state")
    longer = Budget(2 * STEPS, minutes=60, lr=0.02, warmup=0.1, ema=0.9)
    module, progress, seen = run(tmp_path / "state", longer)
    assert seen == list(range(STEPS, 2 * STEPS))
    assert progress.step == 2 * STEPS
    again, _, seen = run(tmp_path / "state", longer)
    assert seen == []
    assert_same(again, module)


# Schedule and average


def test_the_schedule_warms_up_and_falls_like_half_a_cosine() -> None:
    budget = Budget(100, 1, lr=2.0, warmup=0.1, final_lr=0.05)
    assert learning_rate(0.0, budget) == pytest.approx(0.02)
    assert learning_rate(0.05, budget) == pytest.approx(2 * (0.5 * 0.99 + 0.01))
    assert learning_rate(0.1, budget) == pytest.approx(2.0)
    assert learning_rate(0.55, budget) == pytest.approx(2 * (0.05 + 0.95 / 2))
    assert learning_rate(0.1 + 0.9 / 3, budget) == pytest.approx(2 * (0.05 + 0.95 * 0.75))
    assert learning_rate(1.0, budget) == pytest.approx(0.1)
    rates = [learning_rate(i / 1000, budget) for i in range(1001)]
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert max(abs(a - b) for a, b in zip(rates, rates[1:], strict=False)) < 0.03  # no jump
    assert learning_rate(0.0, Budget(100, 1, lr=2.0, warmup=0.0)) == 2.0


def test_the_share_follows_whichever_ends_first() -> None:
    budget = Budget(100, minutes=2, lr=1)
    assert Progress(step=25, seconds=12).share(budget) == 0.25
    assert Progress(step=25, seconds=90).share(budget) == 0.75
    assert Progress(step=500, seconds=0).share(budget) == 1.0


def test_the_rate_of_every_step_is_the_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates, real = [], torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: object) -> object:
        rates.append(float(self.param_groups[0]["lr"]))
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(tmp_path / "state")
    assert rates == pytest.approx([learning_rate(i / STEPS, BUDGET) for i in range(STEPS)])


def test_the_average_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decay min(ema, (1 + t) / (10 + t)) over the weights after each step; the module ends with it."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.0))
            self.register_buffer("count", torch.tensor(0))

    module, weights, real = One(), [], torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: object) -> None:
        real(self, *arguments)
        weights.append(float(module.w.detach()))

    def loss_at(_: int) -> Tensor:
        module.count += 1
        return (module.w - 3).square()

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train("one", module, loss_at, Budget(9, 60, lr=0.1, ema=0.4), tmp_path / "state")
    average = 1.0
    for t, weight in enumerate(weights):
        decay = min(0.4, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * weight
    assert len(weights) == 9
    assert float(module.w.detach()) == pytest.approx(average, abs=1e-6)
    assert average != pytest.approx(weights[-1], abs=1e-3)
    assert int(module.count) == 9  # whole numbers are copied


def test_the_running_loss_is_a_slow_mean(tmp_path: Path) -> None:
    module, losses = nn.Linear(1, 1), []

    def loss_at(step: int) -> Tensor:
        loss = module(torch.full((4, 1), float(step))).square().mean()
        losses.append(float(loss.detach()))
        return loss

    progress = train("mean", module, loss_at, Budget(5, 60, lr=0.01), tmp_path / "state")
    expected = losses[0]
    for loss in losses[1:]:
        expected = 0.99 * expected + 0.01 * loss
    assert progress.loss == pytest.approx(expected)


def test_frozen_weights_stay(tmp_path: Path) -> None:
    module = network()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    train("toy", module, regression(module), BUDGET, tmp_path / "state")
    torch.testing.assert_close(module[0].weight, before)


# The held-out curve


def curve_of(values: list[float]) -> Curve:
    """A value every hundred steps and five minutes, from step 0."""
    return [(100 * index, 5.0 * index, value) for index, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([], False),
        ([30.0], False),
        ([30.0] * 11, False),  # two values in the last fifth are too few
        ([30.0] * 16, True),
        ([30.0 + 0.1 * i for i in range(16)], False),
        ([30.0 + 0.001 * i for i in range(16)], True),
        ([30.0] * 13 + [30.019] * 3, True),
        ([30.0] * 13 + [30.021, 29.9, 29.9], False),  # one gain is a gain
        ([33.0] + [30.0 + 0.1 * i for i in range(15)], False),  # it fell at first, and is on its way back
        ([33.0 - 0.1 * i for i in range(16)], True),
    ],
)
def test_a_curve_is_flat_when_its_last_fifth_gained_next_to_nothing(values: list[float], flat: bool) -> None:
    assert is_flat(curve_of(values)) is flat


def test_a_flat_curve_ends_the_second_half_of_a_budget() -> None:
    budget = Budget(3000, minutes=600, lr=1)
    flat, rising = curve_of([30.0] * 17), curve_of([30.0 + i for i in range(17)])
    assert Progress(step=1600, curve=flat).over(budget)
    assert not Progress(step=1600, curve=rising).over(budget)
    assert not Progress(step=1400, curve=flat).over(budget), "the rate is high, and has yet to fall"
    assert Progress(step=3000, curve=rising).over(budget)


def measured(
    state: Path, values: Callable[[nn.Module], float], stop_at: int = -1
) -> tuple[nn.Module, Progress]:
    module = network()
    loss_at = regression(module, stop_at)
    progress = train("toy", module, loss_at, BUDGET, state, check=lambda: values(module))
    return module, progress


@pytest.mark.usefixtures("save_always")
def test_averaged_weights_are_measured_and_training_goes_on_from_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value before the first step and after each, of the average and in evaluation mode; it changes
    nothing, and a run that was interrupted has the curve of one that was not.
    """
    monkeypatch.setattr(loop, "FLAT_DB", -math.inf)
    modes = set()

    def first_bias(module: nn.Module) -> float:
        modes.add(module.training)
        return float(module.get_parameter("0.bias")[0])

    module, progress = measured(tmp_path / "whole", first_bias)
    assert [step for step, _, _ in progress.curve] == list(range(STEPS + 1))
    before, after = (each.get_parameter("0.bias")[0].item() for each in (network(), module))
    assert (progress.curve[0][2], progress.curve[-1][2]) == (before, after)
    assert modes == {False}
    assert_same(module, run(tmp_path / "without")[0])
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "parts", first_bias, stop_at=17)
    _, again = measured(tmp_path / "parts", first_bias)
    assert [(step, pytest.approx(value, abs=1e-6)) for step, _, value in progress.curve] == [
        (step, value) for step, _, value in again.curve
    ]
    assert metadata(tmp_path / "parts")["curve"] == [list(point) for point in again.curve]


@pytest.mark.usefixtures("save_always")
def test_what_gains_no_more_is_stopped_for_good(tmp_path: Path) -> None:
    """Past the middle, with a curve that stands still; the same command does not take it up again."""
    module, progress = measured(tmp_path / "state", lambda module: 30.0)
    assert STEPS / 2 < progress.step <= STEPS / 2 + 2
    assert progress.done and metadata(tmp_path / "state")["done"]
    again, progress_again = measured(tmp_path / "state", lambda module: 30.0)
    assert progress_again.step == progress.step
    assert_same(again, module)
    count = itertools.count()
    _, rising = measured(tmp_path / "rising", lambda module: float(next(count)))
    assert rising.step == STEPS


# Bad states and losses


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, bad: float) -> None:
    module = network()
    good = regression(module)

    def loss_at(step: int) -> Tensor:
        return good(step) * (bad if step == 7 else 1.0)

    with pytest.raises(RuntimeError, match=r"toy: the loss became (nan|inf) before step 8"):
        train("toy", module, loss_at, BUDGET, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_the_state_of_another_network_is_named(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 1))
    train("wide", wide, regression(wide), BUDGET, tmp_path / "state")
    with pytest.raises(ValueError, match=FOREIGN):
        run(tmp_path / "state")


def without(prefix: str) -> Callable[[Path], None]:
    def harm(state: Path) -> None:
        with safe_open(state, "pt") as file:
            about = file.metadata()
        tensors = {k: v for k, v in load(state.read_bytes()).items() if not k.startswith(prefix)}
        save_file(tensors, state, about)

    return harm


def no_progress(state: Path) -> None:
    state.write_bytes(save(load(state.read_bytes())))


def other_progress(state: Path) -> None:
    state.write_bytes(save(load(state.read_bytes()), {"progress": '{"steps": 3}'}))


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(without("model.0"), id="a weight less"),
        pytest.param(
            lambda state: state.write_bytes(save({"x": torch.ones(2)}, {"progress": "{}"})), id="other"
        ),
        pytest.param(lambda state: state.write_bytes(b"text"), id="text"),
        pytest.param(lambda state: state.write_bytes(b""), id="empty"),
        pytest.param(lambda state: state.write_bytes(state.read_bytes()[:-9]), id="truncated"),
        pytest.param(no_progress, id="no progress"),
        pytest.param(other_progress, id="other progress"),
        pytest.param(without("average.0"), id="an average less"),
        pytest.param(without("optimizer.0"), id="a moment less"),
    ],
)
@pytest.mark.usefixtures("save_always")
def test_a_foreign_state_is_one_clear_error(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(state, stop_at=5)
    harm(state)
    with pytest.raises(ValueError, match=FOREIGN):
        run(state)


@pytest.mark.usefixtures("save_always")
def test_nothing_but_the_state_is_left(tmp_path: Path) -> None:
    """On the way it holds all that a resumed run needs, afterwards the average alone."""
    state = tmp_path / "deep" / "er" / "state"
    with pytest.raises(KeyboardInterrupt):
        run(state, stop_at=3)
    for kinds in ({"model", "average", "optimizer"}, {"average"}):
        assert {key.partition(".")[0] for key in load_file(state)} == kinds
        assert [p.name for p in state.parent.iterdir()] == ["state"]
        run(state)
