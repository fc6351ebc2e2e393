"""The protocol and its second generators: fixed seeds, true bands, pixels derived by hand."""

import math
from pathlib import Path

import pytest
import torch

from training.build.split import layer_part_of
from training.measure import generators as second
from training.measure.protocol import (
    GROUPS,
    HELD_BACK_LAYERS,
    cases,
    missing,
    photo_recipe,
    samples,
    spaced,
    variant_steps,
)
from unirestorer.degradation import RANGES, Recipe
from unirestorer.degradation.steps import Haze, Noise, Rain
from unirestorer.imaging import save_image
from unirestorer.types import Task

PHOTOS = 8
SIZE = (48, 64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(seed: int, height: int = SIZE[0], width: int = SIZE[1]) -> torch.Tensor:
    coarse = torch.rand(1, 3, 6, 8, generator=generator(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("val")
    folders = ["cbsd68", "sunhays", "snow_masks"]
    folders += [f"{name}/{part}" for name in ("rain100l", "sice", "polyu") for part in ("clean", "degraded")]
    for number, name in enumerate(folders):
        (root / name).mkdir(parents=True)
        for index in range(PHOTOS):
            save_image(photo(number + 10 * index), root / name / f"{index}.png")
    for name in ("reference", "rain_streaks"):
        (root / name).mkdir()
    for index in range(40):  # enough for some to be held back
        save_image(photo(index), root / "rain_streaks" / f"{index}-4.png")
    save_image(photo(3), root / "reference/light_map_1.jpg")
    return root


def degraded(case_id: str, data: Path, **options: int | Path) -> dict[str, torch.Tensor]:
    return {
        s.name: s.degraded for s in samples(cases(case_id)[0], data, layers=data / "rain_streaks", **options)
    }


# The list of cases


def test_every_group_has_cases_with_ids_of_their_own() -> None:
    everything = cases()
    assert len({case.id for case in everything}) == len({case.seed for case in everything}) == len(everything)
    assert {case.group for case in everything} == set(GROUPS)
    assert cases("single-in", "unseen") == [c for c in everything if c.group in ("single-in", "unseen")]
    assert [case.id for case in cases("real/polyu")] == ["real/polyu"]
    with pytest.raises(ValueError, match="single-in, single-out"):
        cases("single-sideways")


@pytest.mark.parametrize("task", list(Task))
def test_single_strengths_lie_in_their_bands(task: Task) -> None:
    low, high = RANGES["single"][task]["in"]
    inside = [c.strength for c in cases("single-in") if c.tasks == (task,)]
    outside = [c.strength for c in cases("single-out") if c.tasks == (task,)]
    far_low, far_high = RANGES["single"][task]["out"]
    assert len(inside) == len(outside) == 3
    assert all(low <= strength <= high for strength in inside)
    assert all(not low <= strength <= high and far_low <= strength <= far_high for strength in outside)


def test_mild_strengths_are_milder_than_all_others() -> None:
    for task in Task:
        mild, others = (
            [c.strength for c in cases(group) if c.tasks == (task,)] for group in ("single-mild", "single-in")
        )
        assert len(mild) == 2
        assert min(mild) > max(others) if task is Task.DEJPEG else max(mild) < min(others)


def test_recipes_have_the_cases_strengths() -> None:
    for case in cases("single-in", "single-out", "single-mild", "single-extra"):
        for variant in range(4):
            (step,) = variant_steps(case, variant)
            assert (step.task, step.strength) == (case.tasks[0], pytest.approx(case.strength))


@pytest.mark.parametrize("band", ["in", "out"])
def test_mixed_settings_are_drawn_in_their_bands(band: str) -> None:
    found = cases(f"mixed-{band}")
    assert [c.name for c in found] == [
        "H-R",
        "H-N",
        "H-N-R",
        "LL-H-N-R",
        "LL-H-N-S",
        "LL-H-N-B-R",
        "LL-H-N-B-S",
    ]
    letters = {"H": "dehaze", "R": "derain", "N": "denoise", "LL": "lowlight", "S": "desnow", "B": "deblur"}
    for case in found:
        assert set(case.tasks) == {letters[letter] for letter in case.name.split("-")}
        for variant in range(4):
            for step in variant_steps(case, variant):
                low, high = RANGES["mixed"][step.task][band]
                assert low <= step.strength <= high
    assert len({variant_steps(found[0], variant) for variant in range(4)}) == 4


def test_second_generators_keep_to_the_bands_of_their_task() -> None:
    for case in cases("second-in", "second-out"):
        low, high = RANGES["single"][case.tasks[0]]["in"]
        assert (low <= case.strength <= high) == (case.band == "in")
        assert case.generator in second.SECOND
    assert {case.tasks[0] for case in cases("second-in")} == {"derain", "dehaze", "desnow", "deblur"}


def test_unseen_types_belong_to_no_task() -> None:
    assert {case.name for case in cases("unseen")} == set(second.UNSEEN)
    assert all(case.tasks == () and case.band is None for case in cases("unseen"))


# Rendering


@pytest.mark.parametrize("group", GROUPS)
def test_every_case_renders_whole_8_bit_values(group: str, data: Path) -> None:
    for case in cases(group):
        for sample in samples(case, data, layers=data / "rain_streaks", limit=2):
            assert sample.clean.shape == sample.degraded.shape == (1, 3, *SIZE)
            levels = sample.degraded * 255
            assert (levels - levels.round()).abs().max() < 1e-3
            assert sample.degraded.min() >= 0 and sample.degraded.max() <= 1
            assert sample.tasks == frozenset(case.tasks)
            assert (sample.recipe is None) == (case.generator != "recipe")
            changed = not torch.equal(sample.clean, sample.degraded)
            assert changed == (group != "clean" and case.name != "undegraded")
            for image in (sample.clean, sample.degraded):
                assert torch.equal(image[:, :1].expand_as(image), image) == (group == "grey")


def test_noise_is_as_strong_in_black_and_white(data: Path) -> None:
    (sample, *_) = samples(cases("grey/denoise-25")[0], data)
    middle = (sample.clean[0, 0] > 0.3) & (sample.clean[0, 0] < 0.7)
    assert 255 * (sample.degraded - sample.clean)[0, 0][middle].std() == pytest.approx(25, rel=0.15)


@pytest.mark.parametrize(
    "case_id", ["single-in/derain-80", "mixed-in/H-N-R", "second-in/desnow-0.6", "unseen/raindrops-30"]
)
def test_same_bits_again_and_in_a_subset(case_id: str, data: Path) -> None:
    whole, few = degraded(case_id, data), degraded(case_id, data, limit=3)
    assert list(few) == ["0", "2", "5"]
    again = degraded(case_id, data)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert all(torch.equal(whole[name], few[name]) for name in few)


def test_photos_of_a_case_and_cases_have_fields_of_their_own(data: Path) -> None:
    flat = torch.full((1, 3, *SIZE), 0.5)
    weaker, stronger = cases("single-in/denoise-15")[0], cases("single-in/denoise-25")[0]
    first, second_photo = (photo_recipe(weaker, index, PHOTOS).apply(flat) - 0.5 for index in (0, 1))
    other_case = photo_recipe(stronger, 0, PHOTOS).apply(flat) - 0.5

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    assert abs(correlation(first, second_photo)) < 0.1
    assert abs(correlation(first, other_case)) < 0.1
    assert first.std() * 255 == pytest.approx(15, rel=0.05)


def test_the_published_recipes_stay() -> None:
    """Published figures were measured on these."""
    single, mixed = (
        photo_recipe(cases(name)[0], 0, 20) for name in ("single-in/derain-80", "mixed-in/H-N-R")
    )
    assert single == Recipe((Rain(80.0, -6.6575270891189575, 32.82254934310913, 5),), 2021585421)
    noise, rain = Noise(16.972607374191284), Rain(95.59556245803833, 17.89823591709137, 29.386614561080933, 5)
    assert mixed == Recipe((noise, rain, Haze(0.7881278991699219, 0.9706391215324403)), 178727689)


def test_every_variant_is_met_even_by_a_small_subset() -> None:
    case = cases("mixed-in/H-N-R")[0]
    chosen = spaced(range(20), 4)
    assert len({photo_recipe(case, index, 20).steps for index in chosen}) == 4


def test_spaced_subsets() -> None:
    assert spaced(range(10), 5) == [0, 2, 4, 6, 8]
    assert spaced(range(3), 5) == [0, 1, 2]
    assert spaced(range(7), 1) == [0]


def test_pairs_are_matched_by_name(data: Path) -> None:
    for sample in samples(cases("real/rain100l")[0], data, limit=4):
        assert torch.equal(sample.clean * 255, (sample.clean * 255).round())
        number = int(sample.name)
        assert torch.allclose(sample.clean, photo(3 + 10 * number), atol=0.6 / 255)
        assert torch.allclose(sample.degraded, photo(4 + 10 * number), atol=0.6 / 255)


def test_only_held_back_layers_are_used(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()

    def spy(
        image: torch.Tensor, strength: float, generator: torch.Generator, maps: list[Path]
    ) -> torch.Tensor:
        used.update(path.name for path in maps)
        return image

    monkeypatch.setitem(second.SECOND, "layer_rain", spy)
    degraded("second-in/derain-60", data)
    assert used == {f"{i}-4.png" for i in range(40) if layer_part_of(f"{i}-4.png") == "held_back"} != set()


def test_missing_data_is_named(data: Path, tmp_path: Path) -> None:
    haze, rain = cases("second-in/dehaze-1")[0], cases("second-in/derain-60")[0]
    assert rain.maps == HELD_BACK_LAYERS
    assert missing(haze, data) is None
    assert "rain layers" in missing(rain, data)
    assert "nowhere" in missing(haze, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cbsd68"):
        samples(haze, tmp_path)
    (tmp_path / "cbsd68").mkdir()
    save_image(photo(1), tmp_path / "cbsd68/1.png")
    with pytest.raises(ValueError, match="light_map_1"):
        samples(haze, tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        samples(rain, data, layers=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least 1"):
        samples(haze, data, limit=0)


def test_a_pair_without_partner_is_named(tmp_path: Path) -> None:
    for part, name in (("clean", "a"), ("degraded", "b")):
        (tmp_path / "sice" / part).mkdir(parents=True)
        save_image(photo(1), tmp_path / "sice" / part / f"{name}.png")
    with pytest.raises(ValueError, match=r"a\.png"):
        list(samples(cases("real/sice")[0], tmp_path))


# Second generators and unseen types, pixel by pixel


def flat_map(folder: Path, values: list[float]) -> list[Path]:
    """Maps of one grey value each; multiples of 1/255 survive the file."""
    folder.mkdir(exist_ok=True)
    for index, value in enumerate(values):
        save_image(torch.full((1, 3, 12, 16), value), folder / f"{index}.png")
    return sorted(folder.iterdir())


def test_layer_rain_is_a_screen_blend(tmp_path: Path) -> None:
    layer = flat_map(tmp_path / "r", [0.4])
    rainy = second.layer_rain(torch.full((1, 3, 20, 30), 0.2), 50, generator(), layer)
    assert torch.allclose(rainy, torch.tensor(1 - 0.8 * (1 - 0.5 * 0.4)))  # 0.36
    white = second.layer_rain(torch.full((1, 3, 20, 30), 0.2), 400, generator(), layer)
    assert torch.equal(white, torch.ones_like(white))


@pytest.mark.parametrize(
    ("density", "clear"),
    [
        (0.3, 0.9),
        (0.6, 0.8),
        (0.9, 0.6),
        (0.15, 0.9**0.5),
        (1.1, 0.6 * 0.9 ** (2 / 3)),
        (1.5, 0.6 * 0.8),
        (1.8, 0.6 * 0.6),
    ],
)
def test_mask_snow_adds_masks_up_to_the_density(tmp_path: Path, density: float, clear: float) -> None:
    masks = flat_map(tmp_path / "m", [0.4, 0.1, 0.2])  # sorted by their mean: 0.1, 0.2, 0.4
    snowy = second.mask_snow(torch.full((1, 3, 20, 30), 0.5), density, generator(), masks)
    assert torch.allclose(snowy, torch.tensor(0.5 * clear + 1 - clear), atol=2e-3)  # 0.1 is 25.5 / 255


def test_reference_haze_has_its_depth_from_the_map(tmp_path: Path) -> None:
    near_to_far = torch.linspace(1, 0, 5)[None, None, :, None].expand(1, 3, 5, 6)
    save_image(near_to_far, tmp_path / "map.png")
    dark = second.reference_haze(torch.zeros(1, 3, 5, 6), 2.0, generator(), [tmp_path / "map.png"])
    assert torch.equal(dark[..., 0, :], torch.zeros(1, 3, 6))  # depth 0: t = 1
    air = dark[0, :, -1, 0] / (1 - math.exp(-2.0))  # depth 1: a (1 - t)
    assert ((air >= 0.8) & (air <= 1.0)).all() and air.unique().numel() == 3
    assert torch.allclose(dark[0, :, 2, 0], air * (1 - math.exp(-2.0 * 127 / 255)), atol=4e-3)
    grey = second.reference_haze(torch.full((1, 3, 5, 6), 0.5), 2.0, generator(), [tmp_path / "map.png"])
    assert torch.allclose(grey - dark, 0.5 * torch.exp(-2.0 * (1 - near_to_far.round(decimals=2))), atol=2e-2)


def test_disk_kernel_by_hand() -> None:
    assert torch.equal(second.disk(0.4), torch.ones(1, 1))
    kernel = second.disk(1.0)  # reach 1: centre and edges inside, corners at sqrt(2) weigh 1.5 - sqrt(2)
    corner = 1.5 - math.sqrt(2)
    expected = torch.tensor([[corner, 0.5, corner], [0.5, 1, 0.5], [corner, 0.5, corner]])
    assert torch.allclose(kernel, expected / expected.sum())
    for radius in (2.5, 4.2, 15.5):
        assert second.disk(radius).sum() == pytest.approx(1, abs=1e-5)


def test_disk_blur_spreads_a_point_and_keeps_flat_areas() -> None:
    point = torch.zeros(1, 3, 21, 21)
    point[..., 10, 10] = 1
    blurred = second.disk_blur(point, 7, generator(), [])
    kernel = second.disk(3.5)
    assert kernel.shape == (7, 7)
    assert torch.allclose(blurred[0, 0, 7:14, 7:14], kernel, atol=1e-6)
    assert blurred[0, 0].sum() == pytest.approx(1, abs=1e-4)
    flat = torch.full((1, 3, 9, 40), 0.3)
    assert torch.allclose(
        second.disk_blur(flat, 31, generator(), []), flat, atol=1e-5
    )  # larger than the photo


def test_raindrops_change_only_what_they_cover() -> None:
    clean = photo(1, 200, 300)
    wet = second.raindrops(clean, 5, generator(), [])
    changed = ((wet - clean).abs().amax(1) > 1e-6).float().mean()
    largest = 5 * math.pi * (0.06 * 200) ** 2 / (200 * 300)
    assert 0 < changed <= largest
    assert torch.equal(second.raindrops(clean, 0, generator(), []), clean)
    grey = second.raindrops(torch.full((1, 3, 200, 300), 0.5), 5, generator(), [])
    assert grey.min() == pytest.approx(0.85 * 0.5, abs=1e-3)  # a drop's middle


def test_banding_by_hand() -> None:
    x = torch.tensor([0.0, 0.16, 0.17, 0.5, 1.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    expected = torch.tensor([0.0, 0.0, 1 / 3, 2 / 3, 1.0])
    assert torch.allclose(second.banding(x, 4, generator(), [])[0, 0, 0], expected)


def test_colour_cast_scales_one_channel_fully_and_one_not_at_all() -> None:
    cast = second.colour_cast(torch.full((1, 3, 2, 2), 0.8), 0.25, generator(4), [])
    low, middle, high = sorted(cast[0, :, 0, 0].tolist())
    assert (low, high) == (pytest.approx(0.6), pytest.approx(0.8))
    assert 0.6 < middle < 0.8


def test_salt_and_pepper_hits_whole_pixels_at_its_rate() -> None:
    noisy = second.salt_and_pepper(torch.full((1, 3, 200, 200), 0.5), 0.1, generator(), [])
    assert torch.equal(noisy[0, 0], noisy[0, 1])
    for value in (0.0, 1.0):
        assert (noisy[0, 0] == value).float().mean() == pytest.approx(0.05, abs=0.005)
    assert set(noisy.unique().tolist()) == {0.0, 0.5, 1.0}


def test_tilted_defocus_is_sharp_on_one_row_and_worst_at_an_edge() -> None:
    noise = torch.rand(1, 3, 120, 60, generator=generator())
    soft = second.tilted_defocus(noise, 6, generator(), [])
    error = (soft - noise).square().mean((0, 1, 3)).sqrt()  # per row
    sharp = int(error.argmin())
    assert 30 <= sharp < 90 and error[sharp] < 0.05
    edge = 0 if sharp > 60 else 119
    full = second.disk_blur(noise, 12, generator(), [])
    assert torch.allclose(soft[..., edge, :], full[..., edge, :], atol=0.02)


@pytest.mark.parametrize("name", [*second.SECOND, *second.UNSEEN])
@pytest.mark.parametrize("size", [(1, 1), (7, 90), (33, 21)])
def test_any_size_stays_in_range_and_repeats(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    for index in range(2):
        save_image(photo(index, 12, 16), tmp_path / f"{index}.png")
    strengths = {"layer_rain": 100, "raindrops": 3, "banding": 6, "disk_blur": 9, "tilted_defocus": 5}
    generate, strength = {**second.SECOND, **second.UNSEEN}[name], strengths.get(name, 0.5)
    x, maps = photo(9, *size), sorted(tmp_path.iterdir())
    first = generate(x, strength, generator(7), maps)
    assert first.shape == x.shape
    assert first.min() >= 0 and first.max() <= 1 + 1e-6
    assert torch.equal(first, generate(x, strength, generator(7), maps))


@pytest.mark.parametrize("name", ["layer_rain", "mask_snow", "reference_haze"])
def test_generators_without_maps_say_so(name: str) -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        second.SECOND[name](photo(1), 1.0, generator(), [])
