"""The pipeline and training on a GPU agree with the CPU. Run where there is one."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from helpers import SHAPE
from torch import Tensor
from torch.func import functional_call

from training.build.experts import pixel_loss
from training.build.loop import Budget, train
from training.build.side_by_side import CHUNK, Lane
from unirestorer.degradation import draw_recipe
from unirestorer.networks import build_network
from unirestorer.pipeline import UniRestorer

pytestmark = pytest.mark.cuda
TOLERANCE = 2e-3  # half a grey level: cuDNN sums in another order, TF32 rounds
TRAINED = 1e-2  # of weights after steps: two of AdamW's, which are as long for a small gradient


def test_restoring_agrees(tiny_checkpoint: Path) -> None:
    x = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    cpu, gpu = (UniRestorer.from_pretrained(tiny_checkpoint, device=device) for device in ("cpu", "cuda"))
    a, b = cpu(x), gpu(x)
    torch.testing.assert_close(a.decision.estimate.e, b.decision.estimate.e.cpu(), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(
        a.decision.route.leaf_probs, b.decision.route.leaf_probs.cpu(), atol=1e-2, rtol=0
    )
    expert = cpu.tree.expert_names[int(a.decision.route.expert[0])]
    torch.testing.assert_close(
        cpu(x, expert=expert).image, gpu(x, expert=expert).image.cpu(), atol=TOLERANCE, rtol=0
    )


def test_one_training_step_agrees() -> None:
    generator = torch.Generator().manual_seed(2)
    lq, hq = torch.rand(2, 2, 3, 32, 32, generator=generator)
    losses = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        network = build_network(SHAPE).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for _ in range(2):
            loss = pixel_loss(network, lq.to(device), hq.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


@pytest.mark.parametrize("seed", range(6))
def test_degrading_on_the_gpu_gives_the_same_picture(seed: int) -> None:
    clean = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(seed))
    recipe = draw_recipe(seed, mode="mixed")
    torch.testing.assert_close(recipe.apply(clean.cuda()).cpu(), recipe.apply(clean), atol=TOLERANCE, rtol=0)


def toy_lane(folder: Path, name: str, device: str, budget: Budget) -> Lane:
    """A small network that learns to double random photos."""
    batch, px, chunk_of = 4, 32, {}
    pixels = torch.rand(64, 3, px, px, generator=torch.Generator().manual_seed(3))

    def places_of(chunk: int) -> np.ndarray:
        return chunk_of.setdefault(chunk, np.random.default_rng(chunk).integers(0, 64, (CHUNK, batch, 4)))

    torch.manual_seed(0)
    network = build_network(SHAPE)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    windows = pixels.to(device)

    def loss_of(parameters: dict[str, Tensor], places: Tensor) -> Tensor:
        hq = windows[places[:, 0]]
        return (functional_call(network, parameters, (hq / 2,)) - hq).abs().mean()

    return Lane(name, network, loss_of, places_of, budget, folder / name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_recorded_steps_agree_with_single_ones(tmp_path: Path, optimizer: Literal["adamw", "muon"]) -> None:
    """Two lanes of 40 steps, recorded after the third, against the same steps one by one on the CPU."""
    budget = Budget(steps=40, minutes=60, lr=5e-3, optimizer=optimizer)
    losses, averages = {}, {}
    for device in ("cpu", "cuda"):
        lanes = [toy_lane(tmp_path / device, name, device, budget) for name in ("a", "b")]
        train(lanes, quiet=True)
        losses[device] = [one.progress.loss for one in lanes]
        averages[device] = lanes[1].average["ending.weight"].cpu()
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-2)
    if optimizer == "adamw":  # the other multiplies in half precision
        torch.testing.assert_close(averages["cuda"], averages["cpu"], atol=TRAINED, rtol=0)


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_state_goes_on_on_the_other_device(tmp_path: Path, first: str, second: str) -> None:
    budget = Budget(steps=80, minutes=60, lr=5e-3)
    whole = toy_lane(tmp_path / "whole", "a", "cpu", budget)
    train([whole], quiet=True)
    begun = toy_lane(tmp_path, "a", first, budget)
    begun.start()
    for _ in range(40):
        begun.advance()
    begun.wait()
    begun.look(0.0)
    begun.save()
    again = toy_lane(tmp_path, "a", second, budget)
    assert again.progress.step == 43
    train([again], quiet=True)
    assert again.progress.loss == pytest.approx(whole.progress.loss, rel=1e-2)
    torch.testing.assert_close(
        again.average["ending.weight"].cpu(), whole.average["ending.weight"], atol=TRAINED, rtol=0
    )
