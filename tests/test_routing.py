"""Heads and routers: exact zeros under a mask, noise in training alone, routes that no batch changes."""

import pytest
import torch
from helpers import make_tiny_tree
from torch import Tensor, nn

from unirestorer.config import RouterShape
from unirestorer.routing import LOG_VARIANCE_LIMITS, NoisyGate, Router, mlp
from unirestorer.tree import DegradationTree
from unirestorer.types import Estimate, Task

DIM = 24
TREE: DegradationTree = make_tiny_tree(DIM)


def router(seed: int = 0, spread: float = 1.0) -> Router:
    """A random router in eval mode; `spread` scales the gates, so that probabilities differ."""
    torch.manual_seed(seed)
    made = Router(DIM, TREE.expert_table, RouterShape(hidden=32, layers=3))
    for gate in (made.gate_leaf, made.gate_level):
        nn.init.normal_(gate.gate.weight, std=spread)
        nn.init.normal_(gate.noise.weight, std=spread)
    return made.eval()


def drs(count: int, seed: int = 1) -> Tensor:
    return nn.functional.normalize(
        torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "tasks", [{Task.DERAIN}, {Task.DEJPEG, Task.DEHAZE}, set(Task)], ids=lambda t: f"{len(t)} tasks"
)
def test_masked_leaves_have_exactly_zero_probability(tasks: set[Task], training: bool) -> None:
    model, mask = router(spread=20.0).train(training), TREE.mask(tasks)
    for seed in range(4):
        torch.manual_seed(seed)
        route = model.route(model.estimate(drs(16, seed)), mask)
        assert (route.leaf_probs[:, ~mask] == 0).all()
        assert torch.allclose(route.leaf_probs.sum(-1), torch.ones(16), atol=1e-6)
        assert torch.allclose(route.level_probs.sum(-1), torch.ones(16), atol=1e-6)
        assert mask[route.leaf].all()
        assert torch.isfinite(route.leaf_probs).all()


def test_every_photo_may_have_its_own_mask() -> None:
    model = router()
    masks = torch.stack([TREE.mask({task}) for task in Task])
    route = model.route(model.estimate(drs(7)), masks)
    assert (route.leaf_probs[~masks] == 0).all()
    assert masks[torch.arange(7), route.leaf].all()


def test_a_mask_rescales_what_it_keeps() -> None:
    model, mask = router(), TREE.mask({Task.DENOISE})
    estimate = model.estimate(drs(5))
    free, kept = model.route(estimate).leaf_probs, model.route(estimate, mask).leaf_probs
    expected = free[:, mask] / free[:, mask].sum(-1, keepdim=True)
    assert torch.allclose(kept[:, mask], expected, atol=1e-5)
    assert torch.equal(model.route(estimate, torch.ones(19, dtype=torch.bool)).leaf_probs, free)


def test_one_leaf_left_has_all_the_probability() -> None:
    mask = torch.zeros(19, dtype=torch.bool)
    mask[11] = True
    model = router()
    route = model.route(model.estimate(drs(3)), mask)
    assert route.leaf_probs[:, 11].tolist() == [1.0] * 3
    assert route.leaf.tolist() == [11] * 3


def test_a_mask_that_prunes_everything_is_an_error() -> None:
    model = router()
    nothing = torch.zeros(19, dtype=torch.bool)
    with pytest.raises(ValueError, match="prunes every leaf"):
        model.route(model.estimate(drs(2)), nothing)
    with pytest.raises(ValueError, match="prunes every leaf"):
        model.route(model.estimate(drs(2)), torch.stack([nothing, ~nothing]))


def test_the_expert_is_the_one_on_the_leafs_path_at_the_level() -> None:
    model = router(spread=5.0)
    e = drs(300)
    route = model.route(Estimate(e, 5 * drs(300, 2), 5 * drs(300, 3)))
    assert torch.equal(route.leaf, route.leaf_probs.argmax(-1))
    assert torch.equal(route.level, route.level_probs.argmax(-1))
    expected = [TREE.expert_table[leaf][level] for leaf, level in zip(route.leaf, route.level, strict=True)]
    assert route.expert.tolist() == expected
    assert route.level.unique().tolist() == [0, 1, 2]
    assert len(route.expert.unique()) > 10


def test_noise_only_while_training() -> None:
    model = router()
    estimate = model.estimate(drs(4))
    assert torch.equal(model.route(estimate).leaf_probs, model.route(estimate).leaf_probs)
    model.train()
    noisy = [model.route(estimate) for _ in range(2)]
    assert not torch.equal(noisy[0].leaf_probs, noisy[1].leaf_probs)
    assert not torch.equal(noisy[0].level_probs, noisy[1].level_probs)


def test_the_gates_noise_by_hand() -> None:
    """Eq. 2 on logits: h w_g + N(0, 1) softplus(h w_n), the noise of each choice its own."""
    gate = NoisyGate(2, 3)
    with torch.no_grad():
        gate.gate.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        gate.gate.bias.zero_()
        gate.noise.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.5]]))
        gate.noise.bias.zero_()
    h = torch.tensor([[1.0, 2.0]])
    assert gate.eval()(h).tolist() == [[1.0, 2.0, 3.0]]
    torch.manual_seed(0)
    draws = gate.train()(h.expand(40_000, -1)).detach()
    assert draws.mean(0).tolist() == pytest.approx([1.0, 2.0, 3.0], abs=0.03)
    softplus = torch.log1p(torch.exp(torch.tensor([1.0, 0.0, 1.0])))
    assert draws.std(0).tolist() == pytest.approx(softplus.tolist(), rel=0.02)
    assert abs(float(torch.corrcoef(draws.T)[0, 1])) < 0.02


@pytest.mark.parametrize("masked", [False, True])
def test_a_photos_route_does_not_depend_on_its_batch(masked: bool) -> None:
    model, e = router(spread=3.0), drs(9)
    mask = TREE.mask({Task.DERAIN, Task.DESNOW}) if masked else None
    whole = model.route(model.estimate(e), mask)
    for i in range(9):
        alone = model.route(model.estimate(e[i : i + 1]), mask)
        assert torch.allclose(alone.leaf_probs[0], whole.leaf_probs[i], atol=1e-5)
        assert torch.allclose(alone.level_probs[0], whole.level_probs[i], atol=1e-5)
        assert int(alone.expert) == int(whole.expert[i])
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_the_log_variance_is_clamped() -> None:
    model = router()
    with torch.no_grad():
        model.head_gran[-1].bias.copy_(torch.linspace(-1e4, 1e4, DIM))
    log_e_gran = model.estimate(drs(3)).log_e_gran
    assert log_e_gran.min() == LOG_VARIANCE_LIMITS[0]
    assert log_e_gran.max() == LOG_VARIANCE_LIMITS[1]
    assert torch.isfinite(model.route(model.estimate(drs(3))).level_probs).all()


def test_estimates_are_made_of_standardised_drs() -> None:
    model, e = router(), drs(3)
    with torch.no_grad():
        model.mean.copy_(torch.linspace(-1, 1, DIM))
        model.std.copy_(torch.linspace(0.5, 2, DIM))
    h = (e - torch.linspace(-1, 1, DIM)) / torch.linspace(0.5, 2, DIM)
    assert torch.allclose(model.standardised(e), h)
    estimate = model.estimate(e)
    assert torch.equal(estimate.e, e)
    assert torch.allclose(estimate.e_deg, model.head_deg(h), atol=1e-6)


def test_the_level_follows_the_uncertainty_and_the_leaf_the_degradation() -> None:
    model, e = router(spread=3.0), drs(2)
    estimate = model.estimate(e)
    swapped = model.route(Estimate(e, estimate.e_deg, estimate.log_e_gran.flip(0)))
    route = model.route(estimate)
    assert torch.allclose(swapped.leaf_probs, route.leaf_probs)
    assert torch.allclose(swapped.level_probs, route.level_probs.flip(0), atol=1e-6)


def test_the_table_is_part_of_the_tree_not_of_the_weights() -> None:
    assert "expert_table" not in router().state_dict()
    assert {"mean", "std"} <= set(router().state_dict())


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_mlp_has_its_layers(layers: int) -> None:
    linear = [m for m in mlp(10, 16, 4, layers) if isinstance(m, nn.Linear)]
    assert len(linear) == layers
    assert (linear[0].in_features, linear[-1].out_features) == (10, 4)
    assert mlp(10, 16, 4, layers)(torch.zeros(2, 10)).shape == (2, 4)
