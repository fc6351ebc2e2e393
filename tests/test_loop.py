"""The training loop: interrupted equals uninterrupted, the schedule's shape, the average, bad states."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from training.build import loop
from training.build.loop import Budget, Progress, learning_rate, train

STEPS = 40
FOREIGN = "(?s)state does not fit this training .* delete it to start anew"
BUDGET = Budget(STEPS, minutes=60, lr=0.02, warmup=0.1, ema=0.9)


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
    progress = train("toy", module, regression(module, stop_at, seen), budget, state, quiet=True)
    return module, progress, seen


def metadata(state: Path) -> dict:
    with safe_open(state, "pt") as file:
        return json.loads(file.metadata()["progress"])


def assert_same(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=1e-6)


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every step instead of once a minute."""
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("stops", [[1], [17], [STEPS - 1], [5, 6, 30]], ids=str)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, stops: list[int]) -> None:
    whole, progress, seen = run(tmp_path / "whole")
    assert seen == list(range(STEPS))
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", stop_at=stop)
        assert metadata(tmp_path / "parts")["step"] == stop
    module, again, seen = run(tmp_path / "parts")
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

    progress = train("toy", module, slow, Budget(10**9, 0.5 / 60, 0.01), tmp_path / "state", quiet=True)
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
        rates.append(self.param_groups[0]["lr"])
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
    train("one", module, loss_at, Budget(9, 60, lr=0.1, ema=0.4), tmp_path / "state", quiet=True)
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

    progress = train("mean", module, loss_at, Budget(5, 60, lr=0.01), tmp_path / "state", quiet=True)
    expected = losses[0]
    for loss in losses[1:]:
        expected = 0.99 * expected + 0.01 * loss
    assert progress.loss == pytest.approx(expected)


def test_frozen_weights_stay(tmp_path: Path) -> None:
    module = network()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    train("toy", module, regression(module), BUDGET, tmp_path / "state", quiet=True)
    torch.testing.assert_close(module[0].weight, before)


# Bad states and losses


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, bad: float) -> None:
    module = network()
    good = regression(module)

    def loss_at(step: int) -> Tensor:
        return good(step) * (bad if step == 7 else 1.0)

    with pytest.raises(RuntimeError, match=r"toy: the loss became (nan|inf) at step 7"):
        train("toy", module, loss_at, BUDGET, tmp_path / "state", quiet=True)
    assert not (tmp_path / "state").exists()


def test_the_state_of_another_network_is_named(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 1))
    train("wide", wide, regression(wide), BUDGET, tmp_path / "state", quiet=True)
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
