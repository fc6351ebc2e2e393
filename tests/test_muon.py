"""Muon: orthogonal updates, equal shapes together as one by one, AdamW for the rest, state and learning."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.build.loop import Progress, load_state, save_state
from training.build.muon import ADAM_SHARE, Muon, orthogonal


@pytest.mark.parametrize("shape", [(32, 32), (128, 64), (64, 128), (512, 9), (3, 288), (2, 2)], ids=str)
def test_orthogonal_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    """Of matrices of any size, and with the singular vectors that they had."""
    generator = torch.Generator().manual_seed(shape[0])
    wide, tall = (torch.linalg.qr(torch.randn(4, side, side, generator=generator))[0] for side in shape)
    rank = min(shape)
    values = torch.linspace(1, 0.2, rank) * torch.tensor([1e-4, 1.0, 50.0, 1e4])[:, None]
    matrices = wide[..., :rank] @ torch.diag_embed(values) @ tall[..., :rank].mT
    update = orthogonal(matrices).float()
    assert update.shape == matrices.shape
    along = wide[..., :rank].mT @ update @ tall[..., :rank]  # (4, rank, rank)
    diagonal = along.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3
    assert (along - torch.diag_embed(diagonal)).abs().max() < 0.05


def with_gradients(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return parameters


def test_a_first_step_by_hand() -> None:
    """A matrix moves by an orthogonal one of the rate's size, a vector as by AdamW at a tenth of it."""
    square, tall, bias, scale = with_gradients((8, 8), (32, 2, 2, 2), (8,), (1, 8, 1, 1))
    parameters = [square, tall, bias, scale]
    before = [parameter.detach().clone() for parameter in parameters]
    Muon(parameters, 0.5, weight_decay=0.1).step()
    moved = [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]
    for step, old, parameter, size in ((moved[0], before[0], square, 0.5), (moved[1], before[1], tall, 1.0)):
        assert parameter.grad is not None
        update = (step + 0.5 * 0.1 * old).flatten(1)  # tall: twice, the root of 32 rows over 8 columns
        torch.testing.assert_close(
            update, -size * orthogonal(parameter.grad.flatten(1)[None])[0].float(), atol=0.02, rtol=0
        )
    for step, parameter in ((moved[2], bias), (moved[3], scale)):
        assert parameter.grad is not None
        torch.testing.assert_close(step, -ADAM_SHARE * 0.5 * parameter.grad.sign(), atol=1e-5, rtol=1e-4)


def test_equal_shapes_together_are_as_one_by_one() -> None:
    shapes = [(16, 4, 3, 3), (16, 36), (8, 8), (16, 4, 3, 3), (8, 8), (8,), (16,)]
    together, alone = with_gradients(*shapes), with_gradients(*shapes)
    optimizer, optimizers = Muon(together, 0.1), [Muon([parameter], 0.1) for parameter in alone]
    for _ in range(3):
        for each in (optimizer, *optimizers):
            each.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), atol=2e-3, rtol=0)


def toy() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))
    return module.to(memory_format=torch.channels_last)


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> float:
    """Learn to blur noise; the last loss."""
    loss = torch.zeros(())
    for number in numbers:
        x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(number))
        loss = (module(x) - nn.functional.avg_pool2d(x, 3, 1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_it_learns(as_tensor: bool) -> None:
    module = toy()
    rate = torch.tensor(0.02) if as_tensor else 0.02
    first = steps(module, Muon(module.parameters(), rate), range(1))
    last = steps(module, Muon(module.parameters(), rate), range(60))
    assert last < 0.1 * first


def test_a_rate_that_is_a_tensor_is_read_at_every_step() -> None:
    weights: list[Tensor] = []
    for rate in (torch.tensor(1.0), 0.25):
        (matrix,) = with_gradients((4, 4))
        optimizer = Muon([matrix], rate)
        if isinstance(rate, Tensor):
            rate.fill_(0.25)
        optimizer.step()
        weights.append(matrix.detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_saved_and_loaded_it_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, begun, resumed = toy(), toy(), toy()
    optimizers = [Muon(module.parameters(), 0.02) for module in (whole, begun, resumed)]
    steps(whole, optimizers[0], range(8))
    steps(begun, optimizers[1], range(5))
    save_state(tmp_path / "state", begun, dict(begun.state_dict()), optimizers[1], Progress(5))
    average = {key: torch.zeros_like(value) for key, value in resumed.state_dict().items()}
    progress = load_state(tmp_path / "state", resumed, average, optimizers[2])
    state = optimizers[2].state[resumed[0].bias]
    assert set(state) == {"step", "mean", "square"} and float(state["step"]) == progress.step == 5
    steps(resumed, optimizers[2], range(5, 8))
    torch.testing.assert_close(dict(resumed.state_dict()), dict(whole.state_dict()), atol=1e-5, rtol=0)


def test_the_state_of_another_optimiser_is_named(tmp_path: Path) -> None:
    module = toy()
    muon, adamw = Muon(module.parameters(), 0.02), torch.optim.AdamW(module.parameters(), 0.02)
    for saved, other in ((muon, adamw), (adamw, muon)):
        steps(module, saved, range(2))
        save_state(tmp_path / "state", module, dict(module.state_dict()), saved, Progress(2))
        with pytest.raises(ValueError, match=f"its optimiser was not {type(other).__name__}"):
            load_state(tmp_path / "state", module, dict(module.state_dict()), other)
