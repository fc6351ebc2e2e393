"""The expert architectures: published sizes, every photo size, local statistics, tiles, and errors."""

import math

import pytest
import torch
from torch import Tensor

from training.config import RESTORMER_PAPER, RETINEXFORMER_PAPER
from unirestorer.config import NAFNetShape, NetworkShape, RestormerShape, RetinexFormerShape
from unirestorer.networks import build_network, nafnet
from unirestorer.networks.base import Network
from unirestorer.networks.nafnet import LocalMeans, NAFBlock, NAFNet, stripes, window_factors

NAFNET_PAPER = NAFNetShape(32, (1, 1, 1, 28), 1, (1, 1, 1, 1), window_px=96, unshuffle=1)
SMALL = {
    "nafnet": NAFNetShape(8, (1, 1), 1, (1, 1), window_px=16, unshuffle=1),
    "unshuffled": NAFNetShape(8, (1,), 1, (1,), window_px=16, unshuffle=2),
    "restormer": RestormerShape(8, (1, 1), 1, (1, 1), heads=(1, 2, 4), refinement=1),
    "retinexformer": RetinexFormerShape(8, (1, 1), 1, (1, 1), heads=(1, 2, 4)),
}
each_kind = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())


def trained(config: NetworkShape, seed: int = 0) -> Network:
    """A network in eval mode whose every parameter is random (none at zero), as after training."""
    torch.manual_seed(seed)
    network = build_network(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def photo(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("config", "millions", "tolerance"),
    [(RESTORMER_PAPER, 26.1, 0.1), (RETINEXFORMER_PAPER, 1.6, 0.05), (NAFNET_PAPER, 17.1, 0.1)],
    ids=["restormer", "retinexformer", "nafnet"],
)
def test_parameter_counts_are_the_published_ones(config, millions, tolerance):
    with torch.device("meta"):
        network = build_network(config)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=tolerance)


class Same(Network):
    """The shortest expert: gives what it gets, and remembers the sizes."""

    def __init__(self, multiple: int) -> None:
        super().__init__(multiple=multiple, halo_px=0)
        self.sizes: list[tuple[int, ...]] = []

    def body(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[-2:]))
        return x


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (33, 21), (16, 24)], ids=str)
@pytest.mark.parametrize("multiple", [1, 8])
def test_one_place_pads_for_every_network(size, multiple):
    """A network states its multiple: its body sees nothing else, and what was added is gone afterwards."""
    network, x = Same(multiple), photo(2, 3, *size)
    assert torch.equal(network(x), x)
    assert network.sizes == [tuple(side + -side % multiple for side in size)]
    assert network(x.half()).dtype == torch.float32
    assert not any("forward" in vars(type(build_network(config))) for config in SMALL.values())


def test_a_network_needs_a_body():
    class Bare(Network):
        pass

    with pytest.raises(TypeError, match="body"):
        Bare(multiple=1, halo_px=0)


@each_kind
@pytest.mark.parametrize("size", [(1, 1), (7, 50), (33, 21), (64, 64)], ids=str)
def test_any_size_keeps_its_shape(config, size):
    x = photo(2, 3, *size)
    with torch.inference_mode():
        y = trained(config)(x)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    assert not torch.equal(y, x)


@each_kind
@pytest.mark.parametrize(("size", "mode"), [((30, 21), "reflect"), ((1, 2), "replicate")], ids=str)
def test_odd_sizes_are_mirrored_at_the_bottom_and_right(config, size, mode):
    network, x = trained(config), photo(1, 3, *size)
    padded = torch.nn.functional.pad(x, (0, -size[1] % 4, 0, -size[0] % 4), mode=mode)
    assert network.multiple == 4
    with torch.inference_mode():
        assert torch.equal(network(x), network(padded)[..., : size[0], : size[1]])


@pytest.mark.parametrize("kind", ["nafnet", "unshuffled"])
def test_untrained_nafnet_is_the_identity(kind):
    x = photo(1, 3, 33, 21)
    assert torch.equal(build_network(SMALL[kind])(x), x)


def test_untrained_retinexformer_only_lights_up():
    network, x = build_network(SMALL["retinexformer"]), photo(1, 3, 32, 24)
    light_map, _ = network.stages[0].estimator(x)
    torch.testing.assert_close(network(x), x * light_map + x)


@pytest.mark.parametrize(
    ("size", "window"),
    [((9, 13), 4), ((9, 13), 5), ((5, 40), 12), ((30, 6), 7), ((31, 29), 24), ((8, 9), 8), ((3, 3), 1)],
    ids=str,
)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_local_means_equal_a_naive_loop(size, window, offset):
    """Means of the window around each pixel, moved inside the map at its borders, of any rows at a time."""
    y = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)) + offset
    h, w = (min(window, side) for side in size)
    expected = torch.empty(y.shape, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            top = min(max(i - (h - 1) // 2, 0), size[0] - h)
            left = min(max(j - (w - 1) // 2, 0), size[1] - w)
            expected[:, :, i, j] = y[:, :, top : top + h, left : left + w].double().mean((2, 3))
    local = LocalMeans(y, window)
    for step in (1, 2, 5, size[0]):
        for top in range(0, size[0], step):
            bottom = min(top + step, size[0])
            got = local.rows(top, bottom).double().expand(2, 3, bottom - top, size[1])
            torch.testing.assert_close(got, expected[:, :, top:bottom], rtol=1e-6, atol=1e-6)


def test_local_means_stay_exact_on_a_large_map():
    x = photo(1, 2, 300, 700) + 5
    exact = torch.nn.functional.avg_pool2d(x.double(), 96, stride=1)
    means = LocalMeans(x, 96).rows(47, 300 - 48)[..., 47 : 700 - 48]
    torch.testing.assert_close(means.double(), exact, rtol=0, atol=5e-6)


@pytest.mark.parametrize("window", [1, 2, 7, 12, 24, 48, 96, 97, 7 * 11])
def test_a_windows_factors(window):
    factors = window_factors(window)
    assert math.prod(factors) == window
    assert len(factors) <= 3


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("size", [(33, 21), (64, 80), (7, 50)], ids=str)
@pytest.mark.parametrize("kind", ["nafnet", "unshuffled"])
def test_stripes_equal_all_rows_at_once(kind, size, rows, monkeypatch):
    network, x = trained(SMALL[kind]), photo(2, 3, *size)
    with torch.no_grad():
        monkeypatch.setattr(nafnet, "takes_all_rows", lambda x: True)
        whole = network(x)
    with torch.inference_mode():
        monkeypatch.setattr(nafnet, "takes_all_rows", lambda x: False)
        monkeypatch.setattr(nafnet, "STRIPE_BYTES", rows * 2 * 2 * 8 * 4 * size[1])
        striped = network(x)
    assert (whole - x).abs().mean() > 0.01
    torch.testing.assert_close(striped, whole, rtol=0, atol=1e-6)


def test_stripes_are_of_the_stated_size_and_cover_every_row(monkeypatch):
    monkeypatch.setattr(nafnet, "STRIPE_BYTES", 4 * 2 * 10 * 100 * 3)  # three rows of 10 channels
    x = photo(2, 5, 8, 100)
    assert stripes(x, 10) == [(0, 3), (3, 6), (6, 8)]
    assert stripes(x, 1000) == [(y, y + 1) for y in range(8)]  # never less than a row


def test_a_photo_may_have_a_gradient_at_test_time():
    network, x = trained(SMALL["nafnet"]), photo(1, 3, 40, 24).requires_grad_()
    network(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["nafnet", "unshuffled"])
def test_eval_equals_training_up_to_the_window_and_differs_beyond(kind):
    network = trained(SMALL[kind])
    for side, same in ((15, True), (16, True), (32, False)):
        x = photo(1, 3, side, 16)
        with torch.inference_mode():
            local, whole = network.eval()(x), network.train()(x)
        assert torch.equal(local, whole) == same, side


@each_kind
def test_sizes_in_turn_share_a_module(config):
    shared = trained(config)
    for size in ((40, 24), (24, 40), (40, 24)):
        x = photo(1, 3, *size)
        with torch.inference_mode():
            assert torch.equal(shared(x), trained(config)(x))


def silence_pooling(network: NAFNet) -> None:
    """Leave the pooled statistics without effect, so that only convolutions carry information."""
    for block in network.modules():
        if isinstance(block, NAFBlock):
            torch.nn.init.zeros_(block.attention.weight)


@pytest.mark.parametrize("kind", ["nafnet", "unshuffled"])
def test_nafnet_tile_with_its_halo_equals_the_whole(kind):
    network = trained(SMALL[kind])
    silence_pooling(network)
    halo, side = network.halo_px + -network.halo_px % network.multiple, 2 * network.multiple
    x = photo(1, 3, 2 * halo + side + 32, 2 * halo + side + 32)
    with torch.inference_mode():
        whole = network(x)[..., halo + 16 : halo + 16 + side, halo + 16 : halo + 16 + side]
        tile = network(x[..., 16 : 16 + 2 * halo + side, 16 : 16 + 2 * halo + side])
        torch.testing.assert_close(tile[..., halo : halo + side, halo : halo + side], whole)


@pytest.mark.parametrize("encoder", [(1, 1), (2, 3, 1)], ids=str)
def test_nafnet_halo_covers_every_gradient(encoder):
    """No output pixel depends on an input pixel beyond the halo, whatever its place on the grid."""
    network = trained(NAFNetShape(4, encoder, 2, encoder[::-1], window_px=96, unshuffle=1)).train()
    silence_pooling(network)
    halo = network.halo_px
    for place in (halo, halo + 3, halo + network.multiple - 1):
        x = photo(1, 3, 2 * halo + 2 * network.multiple, 8).requires_grad_()
        network(x)[0, :, place].sum().backward()
        rows = x.grad.abs().sum((0, 1, 3)).nonzero()
        assert rows.min() >= place - halo
        assert rows.max() <= place + halo


@each_kind
def test_gradient_reaches_every_parameter(config):
    network = trained(config).train()
    (network(photo(2, 3, 20, 24)) - photo(2, 3, 20, 24, seed=2)).abs().mean().backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


@each_kind
def test_state_survives_half_precision(config):
    """Weights go to disk in half precision: the rebuilt network is the rounded one, exactly."""
    network, x = trained(config), photo(1, 3, 24, 24)
    halves = {name: value.half() for name, value in network.state_dict().items()}
    rebuilt = build_network(config).eval()
    rebuilt.load_state_dict(halves, strict=True)
    assert all(value.dtype == torch.float32 for value in rebuilt.state_dict().values())
    with torch.inference_mode():
        torch.testing.assert_close(rebuilt(x), network(x), rtol=0.05, atol=0.05)
    assert all(torch.equal(value.half(), halves[name]) for name, value in rebuilt.state_dict().items())


@each_kind
def test_bfloat16_autocast_and_channels_last(config):
    network, x = trained(config), photo(1, 3, 40, 32)
    with torch.inference_mode():
        expected = network(x)
        network = network.to(memory_format=torch.channels_last)
        last = network(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x)
    torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-4)
    assert rough.dtype == torch.float32  # the residual is added in single precision
    assert (rough - expected).abs().mean() < 0.05 * (expected - x).abs().mean()
