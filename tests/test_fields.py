"""Procedural fields: same seed same bits, ranges, any size, more with more strength, kernels sum to 1."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unirestorer.degradation import fields

SIZES = [(1, 1), (7, 500), (33, 21), (321, 481)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=seeded(99))


DRAWS: dict[str, Callable[[int, int, int], Tensor]] = {
    "rain": lambda h, w, seed: fields.rain_field(h, w, 80, 30, 30, 5, seeded(seed)),
    "snow": lambda h, w, seed: fields.snow_field(h, w, 0.6, seeded(seed)),
    "depth": lambda h, w, seed: fields.depth_field(h, w, seeded(seed)),
    "photo depth": lambda h, w, seed: fields.depth_from_image(photo(h, w), seeded(seed)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DRAWS)
def test_shape_range_and_determinism(name: str, size: tuple[int, int]) -> None:
    field = DRAWS[name](*size, 3)
    assert field.shape == (1, *size)
    assert field.dtype == torch.float32
    assert field.min() >= 0
    assert field.max() <= 1
    assert torch.equal(field, DRAWS[name](*size, 3))
    if size == SIZES[-1]:
        assert not torch.equal(field, DRAWS[name](*size, 4))


@pytest.mark.parametrize("name", DRAWS)
def test_bits_do_not_depend_on_threads(name: str) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = DRAWS[name](321, 481, 5)
        torch.set_num_threads(2)
        two = DRAWS[name](321, 481, 5)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


def coverage(draw: Callable[[torch.Generator], Tensor]) -> float:
    return sum(float((draw(seeded(seed)) > 0.05).float().mean()) for seed in range(4)) / 4


def test_more_rain_covers_more() -> None:
    strengths = (0, 20, 80, 150, 200)
    levels = [coverage(lambda g, s=s: fields.rain_field(160, 200, s, -20, 30, 5, g)) for s in strengths]
    assert levels[0] == 0
    assert levels == sorted(set(levels))


def test_more_snow_covers_more_and_none_is_none() -> None:
    levels = [coverage(lambda g, d=d: fields.snow_field(160, 200, d, g)) for d in (0, 0.3, 0.6, 0.9, 1.5)]
    assert levels[0] == 0
    assert levels == sorted(set(levels))


@pytest.mark.parametrize("angle_deg", [-40, 0, 40])
def test_rain_falls_along_its_angle(angle_deg: float) -> None:
    """The layer's gradient is largest across the streaks."""
    layer = fields.rain_field(256, 256, 100, angle_deg, 40, 3, seeded(1))[0].double()
    dy, dx = torch.gradient(layer)
    across = 0.5 * torch.atan2(2 * (dx * dy).sum(), (dx * dx - dy * dy).sum())
    assert float(torch.rad2deg(across)) == pytest.approx(-angle_deg, abs=5)


def test_streaks_run_off_the_edges() -> None:
    """The border is as wet as the middle: streaks that begin outside the frame are drawn too."""
    draws = [fields.rain_field(64, 64, 150, 0, 40, 5, seeded(seed)) for seed in range(60)]
    wet = torch.cat(draws).mean(dim=0)
    assert float(wet[0].mean() / wet[28:36].mean()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("seed", range(6))
def test_depth_spreads_from_near_to_far(seed: int) -> None:
    for depth in (fields.depth_field(120, 160, seeded(seed)), DRAWS["photo depth"](120, 160, seed)):
        assert depth.max() == pytest.approx(1, abs=1e-5)
        assert depth.min() <= 0.26
        assert depth.std() > 0.1


def test_photo_depth_follows_the_photos_edges() -> None:
    """A bright sky over dark ground with a slanted skyline: depth jumps at the skyline, wherever it runs."""
    row, column = torch.meshgrid(torch.arange(120), torch.arange(160), indexing="ij")
    above = row < 30 + column // 4
    clean = torch.where(above, torch.tensor([0.6, 0.75, 0.95])[:, None, None], torch.tensor(0.2))
    depth = fields.depth_from_image(clean, seeded(0))[0]
    assert depth[above].mean() > depth[~above].mean() + 0.2
    for x in (40, 120):
        skyline = 30 + x // 4
        assert depth[skyline - 3, x] - depth[skyline + 2, x] > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_illumination_of_a_flat_photo_is_its_brightest_channel(size: tuple[int, int]) -> None:
    flat = torch.tensor([0.2, 0.7, 0.4])[None, :, None, None].expand(2, 3, *size)
    light = fields.illumination_map(flat)
    assert light.shape == (2, 1, *size)
    assert torch.allclose(light, torch.full_like(light, 0.7), atol=1e-4)
    assert torch.allclose(fields.illumination_map(flat * 0), torch.full_like(light, 0.02))


def test_illumination_is_smooth_but_keeps_great_edges() -> None:
    clean = photo(96, 128) * 0.1
    clean[:, :, 64:] += 0.8
    light = fields.illumination_map(clean[None])[0, 0]
    assert light[:, 70:].std() < 0.5 * clean.amax(dim=0)[:, 70:].std()
    assert (light[:, 66] - light[:, 61]).mean() > 0.6


@pytest.mark.parametrize("length_px", [1, 5, 15, 23, 31])
def test_motion_kernel(length_px: int) -> None:
    for seed in range(12):
        kernel = fields.motion_kernel(length_px, seeded(seed))
        assert torch.equal(kernel, fields.motion_kernel(length_px, seeded(seed)))
        side = kernel.shape[0]
        assert kernel.shape == (side, side)
        assert side % 2 == 1
        assert kernel.min() >= 0
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
        pixel = torch.arange(side) - side // 2
        assert float((kernel.sum(dim=1) * pixel).sum()) == pytest.approx(0, abs=1e-4)
        assert float((kernel.sum(dim=0) * pixel).sum()) == pytest.approx(0, abs=1e-4)
        touched = kernel.nonzero().double()
        extent = (touched[:, None] - touched).norm(dim=-1).max()
        assert length_px - 1 - 1e-6 <= float(extent) <= length_px + 2  # drawing adds under a pixel per end


def test_gaussian_kernel() -> None:
    kernel = fields.gaussian_kernel(21, 3.0, 1.0, 0)
    pixel = torch.arange(-10, 11, dtype=torch.float32)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    assert float((kernel * pixel[None, :] ** 2).sum().sqrt()) == pytest.approx(3.0, abs=0.05)
    assert float((kernel * pixel[:, None] ** 2).sum().sqrt()) == pytest.approx(1.0, abs=0.02)
    assert torch.allclose(fields.gaussian_kernel(21, 3.0, 1.0, 90), kernel.T, atol=1e-7)
    assert fields.gaussian_kernel(1, 2, 2, 0).tolist() == [[1.0]]
