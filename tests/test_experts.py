"""The bank of experts: dispatch, memory, threads, and tiles that equal the whole photo."""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unirestorer.checkpoint import Checkpoint
from unirestorer.config import NAFNetShape, NetworkShape, RestormerShape, RetinexFormerShape
from unirestorer.experts import ExpertBank
from unirestorer.imaging import load_image, run_tiled
from unirestorer.networks import build_network, nafnet
from unirestorer.networks.base import Network

CPU = torch.device("cpu")
COUNT = 6
CUDA_FULL = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Add(Network):
    """Adds a hundredth of its number."""

    def __init__(self, number: int, during: Callable[[], object] = lambda: None) -> None:
        super().__init__(multiple=1, halo_px=0)
        self.number, self.during, self.seen = number, during, 0

    def body(self, x: Tensor) -> Tensor:
        self.during()
        self.seen += len(x)
        return x + self.number / 100


class Loader:
    """Builds experts, and remembers which, in which order."""

    def __init__(self, seconds: float = 0.0, during: Callable[[], object] = lambda: None) -> None:
        self.numbers: list[int] = []
        self.seconds, self.during, self.loading = seconds, during, 0

    def __call__(self, number: int) -> Network:
        self.loading += 1
        assert self.loading == 1, "two threads load at once"
        self.numbers.append(number)
        time.sleep(self.seconds)
        self.loading -= 1
        return Add(number, self.during)


def bank_of(load: Callable[[int], Network], keep: int = 4) -> ExpertBank:
    return ExpertBank(tuple(f"1-{i}" for i in range(COUNT)), load, CPU, keep)


def photos(count: int, height: int = 8, width: int = 10) -> Tensor:
    return 0.1 + 0.5 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("tile_px", [None, 768, 4])
def test_every_photo_goes_to_its_expert_and_comes_back_in_place(tile_px: int | None) -> None:
    x, expert = photos(7), torch.tensor([3, 0, 5, 3, 1, 0, 3])
    before = x.clone()
    bank = bank_of(Loader())
    restored = bank(x, expert, tile_px=tile_px)
    assert torch.allclose(restored, x + expert[:, None, None, None] / 100, atol=1e-6)
    if tile_px is None:
        assert [bank.network(number).seen for number in (0, 1, 3, 5)] == [2, 1, 3, 1]  # nobody else's
    assert torch.equal(x, before)
    assert restored.dtype == torch.float32


def test_the_result_is_clipped_and_single_precision() -> None:
    white = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    restored = bank_of(Loader())(white, torch.tensor([5]))
    assert restored.dtype == torch.float32
    assert restored.max() == 1


def test_an_expert_is_loaded_once_for_a_whole_batch() -> None:
    load = Loader()
    bank_of(load, keep=1)(photos(8), torch.tensor([2, 4, 2, 4, 0, 2, 4, 0]))
    assert sorted(load.numbers) == [0, 2, 4]


def test_the_least_recently_used_expert_goes_first() -> None:
    load = Loader()
    bank = bank_of(load, keep=2)
    for number in (0, 1, 0, 2):  # 2 drives out 1, not 0
        bank.network(number)
    assert load.numbers == [0, 1, 2]
    bank.network(0)
    assert load.numbers == [0, 1, 2]
    bank.network(1)
    assert load.numbers == [0, 1, 2, 1]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_at_most_keep_experts_stay(keep: int) -> None:
    load = Loader()
    bank = bank_of(load, keep)
    for number in range(COUNT):
        bank.network(number)
    for number in reversed(range(COUNT)):
        bank.network(number)
    assert load.numbers == [*range(COUNT), *reversed(range(COUNT - keep))]


def test_networks_are_in_evaluation_mode_and_the_same_while_warm() -> None:
    bank = bank_of(Loader())
    assert not bank.network(2).training
    assert bank.network(2) is bank.network(2)


def test_a_failed_load_can_be_tried_again() -> None:
    attempts = []

    def load(number: int) -> Network:
        attempts.append(number)
        if len(attempts) == 1:
            raise ValueError("damaged")
        return Add(number)

    bank = bank_of(load)
    with pytest.raises(ValueError, match="damaged"):
        bank.network(1)
    assert isinstance(bank.network(1), Add)


# Bad input


@pytest.mark.parametrize("number", [-1, COUNT, 10**6])
def test_unknown_numbers_are_told_the_range(number: int) -> None:
    with pytest.raises(ValueError, match=f"unknown expert number {number}: this model has experts 0 to 5"):
        bank_of(Loader()).network(number)
    with pytest.raises(ValueError, match="unknown expert number"):
        bank_of(Loader())(photos(2), torch.tensor([0, number]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_pixels_that_are_not_finite_are_refused(value: float) -> None:
    x = photos(3)
    x[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match="not finite"):
        bank_of(Loader())(x, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("shape", "expert"),
    [((3, 8, 8), [0]), ((1, 1, 8, 8), [0]), ((1, 4, 8, 8), [0]), ((2, 3, 8, 8), [0]), ((1, 3, 8, 8), [[0]])],
    ids=str,
)
def test_other_shapes_are_refused(shape: tuple[int, ...], expert: list) -> None:
    with pytest.raises(ValueError, match=r"photos \(B, 3, H, W\)"):
        bank_of(Loader())(torch.rand(shape), torch.tensor(expert))


# Threads


def test_threads_share_a_bank() -> None:
    """Four threads, room for two experts: every result is right and no two loads overlap."""
    load = Loader(seconds=0.001)
    bank, wrong = bank_of(load, keep=2), []

    def work(seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        for _ in range(20):
            expert = torch.randint(0, COUNT, (3,), generator=random)
            x = photos(3)
            if not torch.allclose(bank(x, expert), x + expert[:, None, None, None] / 100, atol=1e-6):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_two_threads_that_want_one_expert_load_it_once() -> None:
    load = Loader(seconds=0.05)
    bank = bank_of(load)
    found: list[Network] = []
    threads = [threading.Thread(target=lambda: found.append(bank.network(3))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert load.numbers == [3]
    assert found[0] is found[1]


def test_an_expert_in_use_survives_its_eviction() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def during() -> None:
        if threading.current_thread() is slow:
            inside.set()
            assert go_on.wait(30)

    bank, x, results = bank_of(Loader(during=during), keep=1), photos(1), []
    slow = threading.Thread(target=lambda: results.append(bank(x, torch.tensor([1]))))
    slow.start()
    assert inside.wait(30)
    bank.network(2)  # drives out 1, whose forward pass is under way; nothing waits for it
    go_on.set()
    slow.join(30)
    assert torch.allclose(results[0], x + 0.01, atol=1e-6)


# Tiles


def trained(config: NetworkShape, seed: int = 0) -> Network:
    """Every weight random: the network changes a photo by 0.1 on average, as a strong expert does."""
    torch.manual_seed(seed)
    network = build_network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def uneven(height: int, width: int) -> Tensor:
    """A noisy photo, dark on one half: pooled statistics differ from place to place."""
    random = torch.Generator().manual_seed(1)
    x = F.interpolate(torch.rand(1, 3, 5, 6, generator=random), (height, width), mode="bicubic")
    x = x + 0.1 * torch.randn(x.shape, generator=random)
    x[..., width // 2 :] *= 0.5
    return x.clamp(0, 1)


# The largest and the mean difference that are kept, in units of 1/255, in tiles of 96 px and under random
# weights as strong as an expert's; the comments tell the worst of eight seeds.
BOUNDS = {
    # 4e-5 and 4e-7: rounding; what windows reach beyond the halo shows in the shipped experts below
    "nafnet": (NAFNetShape(8, (1, 1), 1, (1, 1), window_px=16, unshuffle=1), 0.001, 1e-5),
    # 1.04 and 0.05
    "retinexformer": (RetinexFormerShape(8, (1, 1), 1, (1, 1), heads=(1, 2, 4)), 2.0, 0.1),
    # 24 and 1.1: attention over a tile is not attention over the photo
    "restormer": (RestormerShape(8, (1, 1), 1, (1, 1), heads=(1, 2, 4), refinement=1), 40.0, 2.0),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_tiles_equal_the_whole_within_the_stated_bound(kind: str) -> None:
    config, largest, mean = BOUNDS[kind]
    x, number = uneven(180, 200), torch.tensor([0])
    bank = ExpertBank(("0-0",), lambda _: trained(config), CPU)
    whole = bank(x, number, tile_px=None)
    assert (whole - x).abs().mean() > 0.05
    difference = (bank(x, number, tile_px=96) - whole).abs() * 255
    assert 0 < float(difference.max()) < largest
    assert float(difference.mean()) < mean


def test_a_photo_within_one_tile_is_the_whole_photo_exactly() -> None:
    config = BOUNDS["nafnet"][0]
    bank = ExpertBank(("0-0",), lambda _: trained(config), CPU)
    x, number, told = uneven(70, 90), torch.tensor([0]), []
    assert torch.equal(bank(x, number, tile_px=90, progress=told.append), bank(x, number, tile_px=None))
    assert told == [1.0]


def test_progress_rises_to_one() -> None:
    told: list[float] = []
    bank_of(Loader())(photos(2, 40, 40), torch.tensor([1, 1]), tile_px=24, progress=told.append)
    assert len(told) > 2
    assert told == sorted(told)
    assert told[-1] == 1


# Seams: what a tiled run adds must not line up with the tiles' borders.

SEAM_TILE_PX = 64
# A step along a whole border, in units of 1/255. Beyond a few hundredths it shows on a flat wall.
SEAM_LIMIT = 0.05
SHIPPED = Path(__file__).parent.parent / "checkpoints/single"


def grain(x: Tensor) -> Tensor:
    return (0.5 + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)


# A photo of each kind with the expert that would get it: haze, noise, anything.
PHOTOS = {
    "flat": ("1-1", lambda x: torch.full_like(x, 0.6) * torch.tensor([1.0, 0.9, 0.7])[:, None, None]),
    "noisy": ("1-2", grain),
    "textured": ("0-0", lambda x: x),
}


def steps(difference: Tensor) -> Tensor:
    """How much each column of (1, 3, H, W) differs from the one before, on average over its length; 8-bit."""
    return 255 * difference.diff(dim=3).mean(dim=2).abs().amax((0, 1))


@pytest.mark.parametrize("kind", PHOTOS)
def test_the_shipped_experts_leave_no_energy_at_tile_borders(kind: str) -> None:
    name, make = PHOTOS[kind]
    bank = ExpertBank((name,), lambda _: Checkpoint(SHIPPED).expert(name), CPU)
    x = make(uneven(48, 200))
    whole = bank(x, torch.tensor([0]), tile_px=None)
    tiled = bank(x, torch.tensor([0]), tile_px=SEAM_TILE_PX)
    assert (whole - x).abs().max() > 1 / 255  # the expert does something
    assert 0 < (tiled - whole).abs().max() < 1 / 255  # and tiles were used
    assert steps(tiled - whole).max() < SEAM_LIMIT


@pytest.mark.parametrize(
    ("checkpoint", "name", "example", "largest"),
    [("mixed", "2-4", "rain-haze", 0.25), ("single", "2-10", "deblur", 0.1)],
)
def test_a_photo_wider_than_windows_and_halo_has_no_seam(
    checkpoint: str, name: str, example: str, largest: float
) -> None:
    """The experts whose pooled statistics reach furthest, in units of 1/255: 0.10 and 0.04 here, 0.46 and
    0.18 with a halo of two windows.
    """
    bank = ExpertBank((name,), lambda _: Checkpoint(SHIPPED.parent / checkpoint).expert(name), CPU)
    x = load_image(SHIPPED.parents[1] / "assets" / "examples" / f"{example}.png")[:, :, :300]
    x = torch.cat([x, x.flip(3), x, x.flip(3)], dim=3)[..., :1600]
    whole, tiled = (bank(x, torch.tensor([0]), tile_px=side) for side in (None, 192))
    assert 0 < (tiled - whole).abs().max() < largest / 255


def test_seams_would_be_found() -> None:
    """The measure above, on tiles that know nothing of their surroundings."""
    network = Checkpoint(SHIPPED).expert("0-0")
    x = uneven(48, 200)
    with torch.inference_mode():
        tiled = run_tiled(network, x, SEAM_TILE_PX, 0, network.multiple)
        assert steps(tiled - network(x)).max() > 4 * SEAM_LIMIT


# Memory


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return out

    def gone(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


BYTES = {"nafnet": 12, "retinexformer": 59, "restormer": 110}  # the docstring's c
GPU_BYTES = 24  # NAFNet's there
CHANNELS = 8


@pytest.mark.parametrize("kind", BYTES)
def test_memory_is_the_stated_formula(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nafnet, "STRIPE_BYTES", 2**14)
    hold_to(kind, BYTES[kind])


def test_memory_of_nafnet_on_a_gpu_is_the_stated_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nafnet, "takes_all_rows", lambda x: True)
    hold_to("nafnet", GPU_BYTES)


def test_stripes_take_no_more_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {}
    for stripe_bytes in (2**14, 2**20):
        monkeypatch.setattr(nafnet, "STRIPE_BYTES", stripe_bytes)
        network = build_network(NAFNetShape(32, (1,), 1, (1,), window_px=96, unshuffle=1)).eval()
        x = uneven(300, 300)
        with torch.inference_mode(), Live() as live:
            network(x)
        peaks[stripe_bytes] = live.peak
    assert 2**20 < peaks[2**20] - peaks[2**14] <= 4 * 2**20


def hold_to(kind: str, bytes_: int) -> None:
    """Compare the memory of tiles with the formula without its last term."""
    network = build_network(BOUNDS[kind][0]).eval()
    bank = ExpertBank(("0-0",), lambda _: network, CPU)
    bank.network(0)
    extra = {}
    for height, width in ((96, 480), (96, 900)):
        x = uneven(height, width)
        with Live() as live:
            bank(x, torch.tensor([0]), tile_px=64)
        side = 64 + 2 * (network.halo_px + network.multiple) + network.multiple
        bound = bytes_ * CHANNELS * side * min(side, height + 2 * network.multiple)
        extra[width] = live.peak - 2 * x.nbytes
        assert 0.7 * bound < extra[width] <= bound
    assert extra[900] == extra[480]  # a larger photo costs itself and its result alone


class Hungry(Network):
    """Adds a hundredth, and finds no memory for more than `most` pixels at once."""

    def __init__(self, most: int, error: Exception = CUDA_FULL) -> None:
        super().__init__(multiple=1, halo_px=0)
        self.most, self.error, self.seen = most, error, []

    def body(self, x: Tensor) -> Tensor:
        self.seen.append((x.device.type, x.shape[-1]))
        if x.shape[-1] * x.shape[-2] > self.most:
            raise self.error
        return x + 0.01


@pytest.mark.parametrize("tile_px", [None, 768, 300])
def test_out_of_memory_means_smaller_tiles(tile_px: int | None, caplog: pytest.LogCaptureFixture) -> None:
    network, x, told = Hungry(100 * 100), photos(1, 300, 400), []
    bank = ExpertBank(("0-0",), lambda _: network, CPU)
    restored = bank(x, torch.tensor([0]), tile_px=tile_px, progress=told.append)
    assert torch.allclose(restored, x + 0.01, atol=1e-6)
    assert told[-1] == 1
    tried = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    sides = {None: (200, 100), 768: (200, 100), 300: (150, 75)}[tile_px]
    assert tried == [f"cpu: out of memory: trying tiles of {side} px" for side in sides]


def test_a_full_cpu_means_smaller_tiles_too(caplog: pytest.LogCaptureFixture) -> None:
    """The bank did not know the words that command line and page took for want of memory."""
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    bank, x = ExpertBank(("0-0",), lambda _: Hungry(100 * 100, full), CPU), photos(1, 100, 160)
    assert torch.allclose(bank(x, torch.tensor([0])), x + 0.01, atol=1e-6)
    assert caplog.messages == ["cpu: out of memory: trying tiles of 80 px"]


def test_out_of_memory_in_small_tiles_means_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    """The device "meta" stands for a GPU on which nothing can be allocated."""

    class OnlyCpu(Add):
        def body(self, x: Tensor) -> Tensor:
            if x.is_meta:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return super().body(x)

    loads: list[int] = []

    def load(number: int) -> Network:
        loads.append(number)
        return OnlyCpu(number)

    bank = ExpertBank(("0-0", "1-0"), load, torch.device("meta"))
    x = photos(2, 140, 200)
    restored = bank(x, torch.tensor([1, 1]))
    assert torch.allclose(restored, x + 0.01, atol=1e-6)
    assert restored.device == CPU
    assert caplog.messages[-1] == "meta: out of memory even in small tiles: the CPU takes over"
    assert loads == [1, 1]  # the GPU's copy is another photo's, too: it is not moved


def test_no_memory_at_all_is_an_error() -> None:
    bank = ExpertBank(("0-0",), lambda _: Hungry(10), CPU)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        bank(photos(1, 100, 100), torch.tensor([0]))


def test_other_failures_are_not_taken_for_want_of_memory() -> None:
    def defect() -> None:
        raise RuntimeError("a defect of ours")

    with pytest.raises(RuntimeError, match="a defect of ours"):
        bank_of(Loader(during=defect))(photos(1, 300, 300), torch.tensor([1]), tile_px=100)
