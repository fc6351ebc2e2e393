"""Degradations: equations by hand, the same bits again, drawn recipes, and nonsense in a recipe's file."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from unirestorer.degradation import (
    RANGES,
    MapFolder,
    Recipe,
    compose,
    degree_words,
    draw_recipe,
    strength_name,
)
from unirestorer.degradation.fields import (
    gaussian_kernel,
    illumination_map,
    motion_kernel,
    rain_field,
    snow_field,
)
from unirestorer.degradation.recipe import (
    CLEAN_CAPTION,
    ORDER,
    REAL_RAIN_SHARE,
    Band,
    caption_tasks,
    child_generator,
    draw_step,
    make_step,
)
from unirestorer.degradation.steps import (
    LIMITS,
    STEPS,
    CameraNoise,
    GaussianBlur,
    Haze,
    Jpeg,
    Lowlight,
    MotionBlur,
    Noise,
    Rain,
    Scene,
    Snow,
    Step,
    convolve,
)
from unirestorer.imaging import save_image
from unirestorer.types import Mode, Task

ONE_OF_EACH: dict[str, Step] = {
    "lowlight": Lowlight(2.0),
    "gaussian_blur": GaussianBlur(9, 2.0, 0.8, 30.0),
    "motion_blur": MotionBlur(15.0),
    "noise": Noise(25.0),
    "camera_noise": CameraNoise(20.0, 92),
    "rain": Rain(80.0, 20.0),
    "snow": Snow(0.6),
    "haze": Haze(1.0),
    "jpeg": Jpeg(20),
}
each_step = pytest.mark.parametrize("step", ONE_OF_EACH.values(), ids=ONE_OF_EACH.keys())
BANDS: list[tuple[Mode, Band]] = [("single", "in"), ("single", "out"), ("mixed", "in"), ("mixed", "out")]


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def photo(*shape: int, seed: int = 1) -> Tensor:
    """Smooth structure and some texture, in [0, 1]."""
    coarse = torch.rand(*shape[:2], 4, 4, generator=seeded(seed))
    smooth = F.interpolate(coarse, shape[2:], mode="bilinear", align_corners=True)
    return (0.85 * smooth + 0.15 * torch.rand(shape, generator=seeded(seed + 1))).clamp(0, 1)


def by_step(step: Step, image: Tensor, seed: int = 3) -> Tensor:
    """The step alone, without the recipe's clamp."""
    return step(image, Scene(image), seeded(seed))


def test_every_step_has_an_example() -> None:
    assert {name: type(step) for name, step in ONE_OF_EACH.items()} == STEPS


# Equations


def test_haze_by_hand() -> None:
    """Eq. D: at depth 0.5 and beta 1.2, t = exp(-0.6); white air at 0.9."""
    depth = torch.tensor([[0.0, 0.5, 1.0]])[None, None]
    x = Haze(1.2, 0.9).scatter(torch.full((1, 3, 1, 3), 0.3), depth)
    expected = [math.exp(-1.2 * d) * 0.3 + 0.9 * (1 - math.exp(-1.2 * d)) for d in (0.0, 0.5, 1.0)]
    assert expected[0] == 0.3
    for channel in x[0, :, 0]:
        assert channel.tolist() == pytest.approx(expected, abs=1e-6)


def test_haze_takes_its_depth_from_a_folder(tmp_path: Path) -> None:
    save_image(torch.full((1, 3, 20, 20), 0.4), tmp_path / "depth.png")  # 102 / 255
    x = Recipe((Haze(1.0, 0.8),)).apply(torch.full((1, 3, 9, 9), 0.5), {"depth": MapFolder.open(tmp_path)})
    t = math.exp(-0.4)
    assert torch.allclose(x, torch.tensor(t * 0.5 + 0.8 * (1 - t)), atol=1e-6)


def test_lowlight_by_hand() -> None:
    """Eq. F on a flat photo, whose illumination is its brightest channel, 0.6."""
    flat = torch.tensor([0.2, 0.6, 0.4])[None, :, None, None].expand(1, 3, 40, 40)
    x = by_step(Lowlight(2.0), flat)
    expected = [y / 0.6 * 0.6**2 for y in (0.2, 0.6, 0.4)]  # 0.12, 0.36, 0.24
    assert x[0, :, 20, 20].tolist() == pytest.approx(expected, abs=1e-4)


def test_lowlight_reads_the_clean_photos_light() -> None:
    clean, image = photo(1, 3, 32, 32), photo(1, 3, 32, 32, seed=5)
    x = Lowlight(1.8)(image, Scene(clean), seeded(0))
    light = float(illumination_map(clean)[0, 0, 7, 9])
    assert x[0, :, 7, 9].tolist() == pytest.approx(
        (image[0, :, 7, 9] / light * light**1.8).tolist(), abs=1e-6
    )


def test_gamma_one_changes_nothing() -> None:
    clean = photo(1, 3, 32, 32)
    assert torch.allclose(by_step(Lowlight(1.0), clean), clean, atol=1e-6)


@pytest.mark.parametrize("sigma", [2.0, 15.0, 25.0, 50.0, 75.0])
def test_noise_has_its_standard_deviation(sigma: float) -> None:
    grey = torch.full((1, 3, 256, 256), 0.5)
    noise = by_step(Noise(sigma), grey) - grey  # 196,608 draws
    assert float(noise.std()) == pytest.approx(sigma / 255, rel=0.01)
    assert abs(float(noise.mean())) < 4 * sigma / 255 / math.sqrt(noise.numel())
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean() / noise.var()
    assert abs(float(neighbours)) < 0.01  # white
    channels = (noise[:, 0] * noise[:, 1]).mean() / noise.var()
    assert abs(float(channels)) < 0.02  # every colour its own


@pytest.mark.parametrize("sigma", [2.0, 10.0])
def test_camera_noise_on_middle_grey(sigma: float) -> None:
    """Its deviation there is sigma; neighbours agree, colours do not."""
    grey = torch.full((1, 3, 256, 256), 0.5)
    noise = by_step(CameraNoise(sigma), grey) - grey
    assert float(noise.std()) == pytest.approx(sigma / 255, rel=0.04)
    assert abs(float(noise.mean())) < 0.1 * sigma / 255
    assert 0.3 < float((noise[..., 1:] * noise[..., :-1]).mean() / noise.var()) < 0.7
    assert abs(float((noise[:, 0] * noise[:, 2]).mean() / noise.var())) < 0.05


def test_camera_noise_follows_the_light() -> None:
    """In linear light its variance grows with the light: by (b + a / 2) / (b + a) from half of the light to
    all.
    """

    def deviation(value: float) -> float:
        noisy = by_step(CameraNoise(4.0), torch.full((1, 3, 256, 256), value))
        light = torch.where(noisy <= 0.04045, noisy / 12.92, ((noisy + 0.055) / 1.055) ** 2.4)
        return float(light.std())

    grey, half = 0.5, 1.055 * (((0.5 + 0.055) / 1.055) ** 2.4 / 2) ** (1 / 2.4) - 0.055
    assert deviation(half) / deviation(grey) == pytest.approx(math.sqrt(0.97 / 2 + 0.03), rel=0.02)


def test_trained_noise_is_partly_a_cameras() -> None:
    """A third or so, in "single" and within the trained range alone."""
    drawn = [draw_recipe(seed, task=Task.DENOISE).steps[0] for seed in range(400)]
    camera = [step for step in drawn if isinstance(step, CameraNoise)]
    assert 0.25 < len(camera) / len(drawn) < 0.35
    assert all(2 <= step.sigma_8bit <= 50 and 85 <= step.quality <= 100 for step in camera)
    beyond = [draw_recipe(seed, task=Task.DENOISE, band="out").steps[0] for seed in range(100)]
    assert not any(isinstance(step, CameraNoise) for step in beyond)


def test_snow_by_hand() -> None:
    """Eq. E: x = y (1 - m) + m."""
    clean = photo(1, 3, 24, 40)
    mask = snow_field(24, 40, 0.9, seeded(3))
    x = by_step(Snow(0.9), clean)
    row, column = divmod(int(mask.argmax()), 40)
    m = float(mask[0, row, column])
    assert m > 0.3
    assert x[0, :, row, column].tolist() == pytest.approx(
        [y * (1 - m) + m for y in clean[0, :, row, column].tolist()]
    )
    clear = mask[0] == 0
    assert clear.any()
    assert torch.equal(x[0][:, clear], clean[0][:, clear])


def test_rain_adds_one_layer_to_all_colours_and_is_clipped() -> None:
    """Eq. C: x = clip(y + r)."""
    dark, bright = torch.full((1, 3, 64, 64), 0.2), torch.full((1, 3, 64, 64), 0.95)
    rain = Rain(120.0, 20.0, 30.0, 5)
    layer = rain_field(64, 64, 120.0, 20.0, 30.0, 5, seeded(3))
    assert float(layer.max()) > 0.1
    assert torch.allclose(by_step(rain, dark), dark + layer, atol=1e-6)
    wet = Recipe((rain,), 4).apply(bright)
    layer = rain_field(64, 64, 120.0, 20.0, 30.0, 5, child_generator(4, 0))
    assert torch.allclose(wet, (bright + layer).clamp(max=1), atol=1e-6)
    assert float(wet.max()) == 1.0


BLURS = {name: step for name, step in ONE_OF_EACH.items() if name.endswith("blur")}


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 21)], ids=str)
@pytest.mark.parametrize("step", BLURS.values(), ids=BLURS.keys())
def test_blur_keeps_a_flat_photo(step: Step, size: tuple[int, int]) -> None:
    flat = torch.tensor([0.1, 0.5, 0.9])[None, :, None, None].expand(1, 3, *size)
    assert torch.allclose(by_step(step, flat), flat, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("gaussian_blur", lambda: gaussian_kernel(9, 2.0, 0.8, 30.0)),
        ("motion_blur", lambda: motion_kernel(15.0, seeded(3))),
    ],
)
def test_blur_of_a_point_is_the_kernel(name: str, kernel) -> None:
    """Eq. A: a convolution, not a correlation: the point's image is k itself, and all its light is kept."""
    point = torch.zeros(1, 3, 41, 41)
    point[0, :, 20, 20] = 1.0
    x, k = by_step(ONE_OF_EACH[name], point), kernel()
    pad = k.shape[0] // 2
    assert not torch.allclose(k, k.flip(0), atol=1e-3)  # turning it would show
    for channel in x[0]:
        assert torch.allclose(channel[20 - pad : 21 + pad, 20 - pad : 21 + pad], k, atol=1e-6)
        assert float(channel.sum()) == pytest.approx(1, abs=1e-5)


def test_convolution_is_mirrored_at_the_border() -> None:
    x = torch.tensor([1.0, 2.0, 4.0]).expand(1, 3, 1, 3)
    kernel = torch.zeros(3, 3)
    kernel[1] = torch.tensor([0.5, 0.3, 0.2])  # k(-1), k(0), k(1)
    expected = [0.5 * 2 + 0.3 * 1 + 0.2 * 1, 0.5 * 4 + 0.3 * 2 + 0.2 * 1, 0.5 * 4 + 0.3 * 4 + 0.2 * 2]
    assert convolve(x, kernel)[0, 0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("quality", [3, 10, 50])
def test_jpeg_is_pillows_own(quality: int) -> None:
    pixels = (photo(1, 3, 37, 50) * 255).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(
        file, "JPEG", quality=quality, subsampling="4:2:0"
    )
    expected = np.asarray(Image.open(file))
    x = by_step(Jpeg(quality), pixels.float() / 255)
    assert np.array_equal((x[0].permute(1, 2, 0) * 255).round().numpy(), expected)
    assert not torch.equal(x, pixels.float() / 255)


# Recipes are deterministic


@each_step
def test_same_recipe_same_bits_alone_and_in_a_batch(step: Step) -> None:
    clean, recipe = photo(3, 3, 48, 56), Recipe((step,), 17)
    before = clean.clone()
    x = recipe.apply(clean)
    assert torch.equal(clean, before)
    assert torch.equal(x, recipe.apply(clean))
    assert torch.equal(x, Recipe.from_json(recipe.to_json()).apply(clean))
    for index in range(3):
        assert torch.equal(x[index : index + 1], recipe.apply(clean[index : index + 1]))
    if not isinstance(step, Lowlight | GaussianBlur | Jpeg):  # these draw nothing
        assert not torch.equal(x, recipe.reseeded(18).apply(clean))


def test_a_chain_repeats_and_its_steps_do_not_share_a_stream() -> None:
    clean = torch.full((2, 3, 40, 40), 0.5)
    chain = Recipe(tuple(ONE_OF_EACH.values()), 5)
    assert torch.equal(chain.apply(clean), chain.apply(clean))
    first, second = (Noise(10.0)(clean, Scene(clean), child_generator(5, index)) - clean for index in (0, 1))
    twice = Recipe((Noise(10.0), Noise(10.0)), 5).apply(clean) - clean
    assert torch.allclose(twice, first + second, atol=1e-6)
    assert abs(float((first * second).mean() / first.var())) < 0.05


FULL = Recipe((Noise(30.0), Rain(90.0, 10.0), Haze(0.8)), 21)
SKIPPED = [(task, index) for index, task in enumerate((Task.DENOISE, Task.DERAIN, Task.DEHAZE))]


@pytest.mark.parametrize(("task", "skipped"), SKIPPED)
def test_a_recipe_without_a_task_leaves_the_others_as_they_are(task: Task, skipped: int) -> None:
    clean = photo(2, 3, 40, 52)
    expected = clean
    for index, step in enumerate(FULL.steps):
        if index != skipped:
            expected = step(expected, Scene(clean), child_generator(FULL.seed, index)).clamp(0, 1)
    rest = FULL.without(task)
    assert rest.tasks == FULL.tasks - {task}
    assert torch.equal(rest.apply(clean), expected)
    assert Recipe.from_json(rest.to_json()) == rest
    assert torch.equal(Recipe.from_json(rest.to_json()).apply(clean), expected)
    assert ("streams" in rest.to_dict()) == (task is not Task.DEHAZE), "the last step's place is all it had"
    assert FULL.without(Task.DESNOW) == FULL
    assert torch.equal(
        rest.without(task).reseeded(5).apply(clean), FULL.reseeded(5).without(task).apply(clean)
    )


def test_nothing_is_left_without_the_only_task() -> None:
    assert Recipe((Noise(30.0), Noise(5.0)), 4).without(Task.DENOISE) == Recipe((), 4)


def test_a_reversed_recipe_has_the_same_fields() -> None:
    clean = photo(1, 3, 24, 24)
    expected = FULL.steps[2](clean, Scene(clean), child_generator(FULL.seed, 2)).clamp(0, 1)
    backwards = FULL.reversed()
    assert [step.task for step in backwards.steps] == [Task.DEHAZE, Task.DERAIN, Task.DENOISE]
    assert torch.equal(backwards.without(Task.DERAIN).without(Task.DENOISE).apply(clean), expected)
    assert backwards.reversed() == FULL
    assert Recipe.from_json(backwards.to_json()) == backwards


def test_a_file_without_streams_numbers_its_steps() -> None:
    text = '{"seed": 5, "steps": [{"kind": "noise", "sigma_8bit": 10}, {"kind": "rain", "streaks": 75}]}'
    old = Recipe.from_json(text)
    assert old == Recipe((Noise(10), Rain(75)), 5, (0, 1)) and "streams" not in old.to_dict()


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (33, 21)], ids=str)
@each_step
def test_every_size(step: Step, size: tuple[int, int]) -> None:
    clean = photo(2, 3, *size)
    x = Recipe((step,), 2).apply(clean)
    assert x.shape == clean.shape
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1


def test_no_steps_is_the_photo_itself() -> None:
    clean = photo(1, 3, 8, 8)
    assert torch.equal(Recipe(()).apply(clean), clean)
    assert Recipe(()).caption == "a clean photo"
    assert Recipe(()).tasks == frozenset()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (8, 8)], ids=str)
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\) is needed"):
        Recipe((Noise(5.0),)).apply(torch.rand(shape))


# Maps from a folder


def test_real_rain_comes_from_its_folder(tmp_path: Path) -> None:
    layer = torch.zeros(1, 3, 30, 30)
    layer[..., 10:20] = 0.4  # 102 / 255
    save_image(layer, tmp_path / "layer.png")
    folder = MapFolder.open(tmp_path)
    wet = Recipe((Rain(75.0, real=True),), 1).apply(torch.full((2, 3, 30, 30), 0.2), {"rain": folder})
    assert torch.allclose(wet[..., 10:20], torch.tensor(0.2 + 0.75 * 0.4), atol=1e-6)
    assert torch.allclose(wet[..., :10], torch.tensor(0.2))
    large = Recipe((Rain(75.0, real=True),), 1).apply(torch.full((1, 3, 70, 95), 0.2), {"rain": folder})
    assert large.shape == (1, 3, 70, 95)  # mirrored outward
    assert float((large > 0.4).float().mean()) == pytest.approx(1 / 3, abs=0.1)


def test_real_rain_without_a_folder_says_so() -> None:
    with pytest.raises(ValueError, match="no folder of rain layers"):
        Recipe((Rain(75.0, real=True),)).apply(torch.zeros(1, 3, 8, 8))


def test_snow_and_light_take_maps_too(tmp_path: Path) -> None:
    save_image(torch.full((1, 3, 20, 20), 0.4), tmp_path / "map.png")
    maps = {name: MapFolder.open(tmp_path) for name in ("snow", "light")}
    clean = torch.full((1, 3, 12, 12), 0.3)
    assert torch.allclose(Recipe((Snow(0.5),)).apply(clean, maps), torch.tensor(0.3 * 0.8 + 0.2), atol=1e-6)
    assert torch.allclose(Recipe((Lowlight(2.0),)).apply(clean, maps), torch.tensor(0.3 * 0.4), atol=1e-6)


def test_a_map_is_a_window_of_the_file_itself(tmp_path: Path) -> None:
    pixels = torch.rand(1, 1, 24, 31, generator=seeded(0)).mul(255).round().div(255)
    save_image(pixels.expand(1, 3, -1, -1), tmp_path / "map.png")
    windows = pixels[0, 0].unfold(0, 9, 1).unfold(1, 8, 1)  # (16, 24, 9, 8)
    for seed in range(8):
        drawn = MapFolder.open(tmp_path).draw(9, 8, seeded(seed))
        found = [(windows - one).abs().amax((2, 3)).min() < 1e-6 for one in (drawn[0], drawn[0].flip(-1))]
        assert sum(map(bool, found)) == 1


def test_a_folder_without_maps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image"):
        MapFolder.open(tmp_path)


def test_a_missing_folder_of_maps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        MapFolder.open(tmp_path / "nowhere")


# Drawing


@pytest.mark.parametrize("mode", ["single", "mixed"])
def test_drawn_recipes_survive_json(mode: Mode) -> None:
    for seed in range(51):
        recipe = draw_recipe(seed, mode=mode, real_rain=seed % 2 == 0)
        assert Recipe.from_json(recipe.to_json()) == recipe
        assert recipe == draw_recipe(seed, mode=mode, real_rain=seed % 2 == 0)
        assert recipe != draw_recipe(seed + 1000, mode=mode)


@pytest.mark.parametrize(("mode", "band"), BANDS)
def test_drawn_strengths_fill_their_range(mode: Mode, band: Band) -> None:
    for task, bands in RANGES[mode].items():
        low, high = bands[band]
        drawn = [draw_step(task, child_generator(s, 1), mode=mode, band=band) for s in range(200)]
        strengths = [step.strength for step in drawn]
        assert all(step.task is task for step in drawn)
        assert low <= min(strengths) < low + 0.1 * (high - low) + 0.5 * (task is Task.DEJPEG)
        assert high - 0.1 * (high - low) - 0.5 * (task is Task.DEJPEG) < max(strengths) <= high
        assert np.mean(strengths) == pytest.approx((low + high) / 2, abs=0.1 * (high - low))


@pytest.mark.parametrize(("mode", "band"), BANDS)
def test_drawn_steps_keep_to_the_accepted_limits(mode: Mode, band: Band) -> None:
    for seed in range(150):
        for step in draw_recipe(seed, mode=mode, band=band, real_rain=True).steps:
            for name, value in vars(step).items():
                if name != "real":
                    assert LIMITS[name][0] <= value <= LIMITS[name][1], step


def test_drawn_details() -> None:
    """Supplement B: kernels of 7 to 23 px, half isotropic; streaks within 45 degrees, 20-40 px by 3-11."""
    blurs = [make_step(Task.DEBLUR, 2.5, seeded(s), mode="mixed") for s in range(400)]
    assert {b.size_px for b in blurs} == set(range(7, 24, 2))
    round_ones = [b for b in blurs if b.sigma_x_px == b.sigma_y_px]
    assert len(round_ones) / 400 == pytest.approx(0.5, abs=0.08)
    assert all(0.5 <= b.sigma_y_px <= b.sigma_x_px == 2.5 for b in blurs)
    rains = [make_step(Task.DERAIN, 80.0, seeded(s)) for s in range(400)]
    assert {r.width_px for r in rains} == {3, 5, 7, 9, 11}
    assert all(-45 <= r.angle_deg <= 45 and 20 <= r.length_px <= 40 for r in rains)
    assert max(r.angle_deg for r in rains) > 40 > -40 > min(r.angle_deg for r in rains)
    assert all(0.8 <= make_step(Task.DEHAZE, 1.0, seeded(s)).airlight <= 1.0 for s in range(50))


def test_a_quarter_of_the_rain_is_real_where_layers_are_given() -> None:
    rains = [draw_step(Task.DERAIN, child_generator(s, 1), real_rain=True) for s in range(600)]
    real = [r for r in rains if r.real]
    assert len(real) / 600 == pytest.approx(REAL_RAIN_SHARE, abs=0.05)
    assert all(60 <= r.streaks <= 120 for r in real)
    assert not any(draw_step(Task.DERAIN, child_generator(s, 1)).real for s in range(50))


def test_single_draws_every_task_alike_and_only_the_named_one() -> None:
    tasks = [draw_recipe(seed).steps[0].task for seed in range(700)]
    assert all(len(draw_recipe(seed).steps) == 1 for seed in range(50))
    assert all(abs(tasks.count(task) - 100) < 40 for task in Task)
    assert all(draw_recipe(seed, task=Task.DESNOW).tasks == {Task.DESNOW} for seed in range(20))


def test_mixed_gates_and_order() -> None:
    """Each gate opens half the time (an empty chain is drawn anew), in the order of Fig. A."""
    recipes = [draw_recipe(seed, mode="mixed") for seed in range(1000)]
    share_not_empty = 1 - 0.5**6
    for task in ORDER[:-1]:
        share = sum(task in r.tasks for r in recipes) / len(recipes)
        assert share == pytest.approx(0.5 / share_not_empty, abs=0.05)
    for recipe in recipes:
        places = [ORDER.index(step.task) for step in recipe.steps]
        assert places
        assert places == sorted(set(places))
        assert Task.DEJPEG not in recipe.tasks


def test_severities_of_a_chain_are_uncorrelated() -> None:
    recipes = [draw_recipe(seed, mode="mixed") for seed in range(400)]
    strength = [{step.task: step.strength for step in recipe.steps} for recipe in recipes]
    pooled = []
    for i, first in enumerate(ORDER[:-1]):
        for second in ORDER[i + 1 : -1]:
            both = np.array([(s[first], s[second]) for s in strength if first in s and second in s])
            assert len(both) > 60
            scaled = (both - both.mean(0)) / both.std(0)
            pooled.append(float((scaled[:, 0] * scaled[:, 1]).mean()))
            assert abs(pooled[-1]) < 4 / math.sqrt(len(both)), (first, second)  # 4 sigma of fifteen pairs
    assert abs(float(np.mean(pooled))) < 0.05


def test_every_severity_of_four_hundred_recipes_is_its_own() -> None:
    """Without gates: the strengths that one seed gives to every task, all pairs below 0.15."""

    def strength(task: Task, seed: int) -> float:
        return draw_step(task, child_generator(seed, 101 + ORDER.index(task)), mode="mixed").strength

    table = np.array([[strength(task, seed) for task in ORDER[:-1]] for seed in range(400)])
    correlation = np.corrcoef(table.T) - np.eye(len(ORDER) - 1)
    assert np.abs(correlation).max() < 0.15


# Composing


def test_a_request_is_one_recipe_whoever_makes_it() -> None:
    recipe = compose({Task.DEHAZE: 1, Task.DERAIN: 75}, 0)
    assert recipe == compose({Task.DERAIN: 75.0, Task.DEHAZE: 1.0}, 0)
    rain, haze = recipe.steps
    assert isinstance(rain, Rain) and rain.angle_deg == pytest.approx(-18.245, abs=1e-3)
    assert compose({Task.DERAIN: 75}, 0).steps == (rain,), "another task changes nothing"
    assert compose({Task.DEHAZE: 1}, 0).steps == (haze,)
    assert recipe.to_json() == compose({Task("dehaze"): 1.0, Task("derain"): 75}, 0).to_json()
    assert compose({}, 3) == Recipe((), 3)


def test_every_task_is_composed_in_the_order_of_the_paper() -> None:
    strengths = {task: float(np.mean(RANGES["single"][task]["in"])) for task in Task}
    recipe = compose(strengths, 11)
    assert [step.task for step in recipe.steps] == list(ORDER)
    for step in recipe.steps:
        assert step.strength == pytest.approx(strengths[step.task], abs=0.5 * (step.task is Task.DEJPEG))


def test_a_band_draws_what_draw_recipe_draws() -> None:
    for seed in range(30):
        drawn = draw_recipe(seed, mode="mixed", band="out")
        assert compose(dict.fromkeys(drawn.tasks, "out"), seed, "mixed") == drawn


def test_blur_counts_pixels_of_its_mode() -> None:
    (motion,), (gaussian,) = (compose({Task.DEBLUR: 3.0}, 0, mode).steps for mode in ("single", "mixed"))
    assert motion == MotionBlur(3.0)
    assert isinstance(gaussian, GaussianBlur) and gaussian.sigma_x_px == 3.0
    assert strength_name(Task.DEBLUR) == "length in pixels"
    assert strength_name(Task.DEBLUR, "mixed") == "σ in pixels"
    assert strength_name(Task.DENOISE) == strength_name(Task.DENOISE, "mixed")


@pytest.mark.parametrize(
    ("strengths", "seed", "message"),
    [
        ({"fog": 1.0}, 0, "unknown task 'fog'"),
        ({Task.DENOISE: 1e9}, 0, "noise.sigma_8bit: expected 0 to 255"),
        ({Task.DENOISE: -1.0}, 0, "noise.sigma_8bit: expected 0 to 255"),
        ({Task.DEJPEG: math.nan}, 0, "strength of dejpeg"),
        ({Task.DEJPEG: math.inf}, 0, "strength of dejpeg"),
        ({Task.DEJPEG: 0.4}, 0, "jpeg.quality: expected 1 to 100"),
        ({Task.DENOISE: 25.0}, -1, "seed"),
        ({Task.DENOISE: 25.0}, 2**63, "seed"),
        ({}, -1, "seed"),
    ],
    ids=str,
)
def test_what_cannot_be_composed_is_told(strengths: dict, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(strengths, seed)


# Words


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Rain(50.0), "light rain"),
        (Rain(50.1), "medium rain"),
        (Rain(100.0), "medium rain"),
        (Rain(100.1), "heavy rain"),
        (Rain(60.0, real=True), "real rain"),
        (Haze(0.99), "light haze"),
        (Haze(1.0), "thick haze"),
        (Noise(15.0), "light noise"),
        (Noise(15.1), "medium noise"),
        (Noise(35.0), "medium noise"),
        (Noise(35.1), "heavy noise"),
        (MotionBlur(14.9), "mild motion blur"),
        (MotionBlur(15.0), "strong motion blur"),
        (GaussianBlur(7, 1.9, 1.0), "mild blur"),
        (GaussianBlur(7, 1.0, 2.0), "strong blur"),
        (Lowlight(1.69), "dim light"),
        (Lowlight(1.7), "very low light"),
        (Snow(0.33), "light snow"),
        (Snow(0.34), "medium snow"),
        (Snow(0.67), "heavy snow"),
        (Jpeg(15), "heavy compression"),
        (Jpeg(16), "medium compression"),
        (Jpeg(35), "medium compression"),
        (Jpeg(36), "light compression"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_degrees_at_their_limits(step: Step, words: str) -> None:
    assert degree_words(step) == words
    assert Recipe((step,)).caption == f"a photo with {words}"


def test_a_chain_in_words() -> None:
    recipe = Recipe((Lowlight(1.2), Noise(40.0), Haze(0.5)))
    assert recipe.words == "dim light and heavy noise and light haze"
    assert recipe.tasks == {Task.LOWLIGHT, Task.DENOISE, Task.DEHAZE}


# Nonsense in a file


def of(step: str) -> str:
    return f'{{"seed": 0, "steps": [{step}]}}'


MALFORMED = {
    "nothing": ("", "not JSON"),
    "no JSON": ("{", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "number": ("3", "a recipe is"),
    "null": ("null", "a recipe is"),
    "list": ("[]", "a recipe is"),
    "no steps": ("{}", "a recipe is"),
    "steps no list": ('{"steps": {"kind": "noise"}}', "a recipe is"),
    "other key": ('{"steps": [], "sead": 1}', "a recipe is"),
    "negative seed": ('{"seed": -1, "steps": []}', "seed"),
    "huge seed": ('{"seed": 1e300, "steps": []}', "seed"),
    "seed 2^63": (f'{{"seed": {2**63}, "steps": []}}', "seed"),
    "seed true": ('{"seed": true, "steps": []}', "seed"),
    "seed NaN": ('{"seed": NaN, "steps": []}', "seed"),
    "streams no list": ('{"steps": [], "streams": 3}', "a recipe is"),
    "streams of others": ('{"steps": [{"kind": "noise", "sigma_8bit": 1}], "streams": [0, 1]}', "streams"),
    "negative stream": ('{"steps": [{"kind": "noise", "sigma_8bit": 1}], "streams": [-1]}', "streams"),
    "stream true": ('{"steps": [{"kind": "noise", "sigma_8bit": 1}], "streams": [true]}', "streams"),
    "stream of the gates": ('{"steps": [{"kind": "noise", "sigma_8bit": 1}], "streams": [100]}', "streams"),
    "17 steps": (of(", ".join(['{"kind": "noise", "sigma_8bit": 1}'] * 17)), "at most 16"),
    "step no object": (of("3"), "needs a kind"),
    "no kind": (of('{"sigma_8bit": 5}'), "needs a kind"),
    "unknown kind": (of('{"kind": "hail"}'), "lowlight, gaussian_blur"),
    "kind no text": (of('{"kind": ["noise"]}'), "needs a kind"),
    "deep step": (of("[" * 900 + "]" * 900), "needs a kind"),
    "deep value": (of('{"kind": "noise", "sigma_8bit": ' + "[" * 900 + "]" * 900 + "}"), "expected a number"),
    "unknown parameter": (of('{"kind": "noise", "sigma": 5}'), "noise: takes sigma_8bit and"),
    "class variable": (of('{"kind": "noise", "sigma_8bit": 5, "task": "derain"}'), "takes sigma_8bit and"),
    "missing parameter": (
        of('{"kind": "gaussian_blur", "size_px": 7}'),
        "needs size_px, sigma_x_px, sigma_y_px, got",
    ),
    "text": (of('{"kind": "noise", "sigma_8bit": "5"}'), "expected a number"),
    "null value": (of('{"kind": "noise", "sigma_8bit": null}'), "expected a number"),
    "true": (of('{"kind": "noise", "sigma_8bit": true}'), "expected a number"),
    "NaN": (of('{"kind": "noise", "sigma_8bit": NaN}'), "expected 0 to 255"),
    "infinity": (of('{"kind": "noise", "sigma_8bit": Infinity}'), "expected 0 to 255"),
    "overflow": (of('{"kind": "noise", "sigma_8bit": 1e999}'), "expected 0 to 255"),
    "negative": (of('{"kind": "snow", "density": -0.1}'), "expected 0 to 3"),
    "huge": (of('{"kind": "motion_blur", "length_px": 1e9}'), "expected 1 to 127"),
    "400 digits": (of(f'{{"kind": "noise", "sigma_8bit": 1{"0" * 400}}}'), "expected 0 to 255"),
    "5000 digits": (of(f'{{"kind": "noise", "sigma_8bit": 1{"0" * 5000}}}'), "digits"),
    "half a quality": (of('{"kind": "jpeg", "quality": 50.5}'), "whole number"),
    "quality 0": (of('{"kind": "jpeg", "quality": 0}'), "expected 1 to 100"),
    "even kernel": (of('{"kind": "gaussian_blur", "size_px": 8, "sigma_x_px": 1, "sigma_y_px": 2}'), "odd"),
    "no blur": (of('{"kind": "gaussian_blur", "size_px": 7, "sigma_x_px": 0, "sigma_y_px": 1}'), "0.1 to 20"),
    "real no bool": (of('{"kind": "rain", "streaks": 50, "real": 1}'), "true or false"),
}


@pytest.mark.parametrize(("text", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_recipes_are_one_clear_sentence(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", LIMITS)
def test_the_extremes_of_every_limit_work(name: str) -> None:
    """What from_json accepts, apply can do."""
    for kind, example in ONE_OF_EACH.items():
        if name in vars(example):
            for value in LIMITS[name]:
                data = {"kind": kind, **vars(example), name: value}
                x = Recipe.from_dict({"steps": [data]}).apply(photo(1, 3, 20, 24))
                assert x.isfinite().all()


def test_captions_name_their_tasks() -> None:
    """What a recipe's caption names is what undoes it, in both modes."""
    for mode in ("single", "mixed"):
        for seed in range(60):
            recipe = draw_recipe(seed, mode=mode, real_rain=True)
            assert caption_tasks(recipe.caption) == recipe.tasks
    assert caption_tasks(CLEAN_CAPTION) == caption_tasks("a photo of a cat") == frozenset()
