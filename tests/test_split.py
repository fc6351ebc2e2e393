"""The split of the training photos: whole, disjoint, in proportion, and near copies together."""

import json
from pathlib import Path

import pytest
import torch

from training.__main__ import main
from training.build import split
from training.build.split import LAYER_SHARES, SHARES, layer_part_of, make_split, part_of, rain_layers
from unirestorer.imaging import save_image

BASE = torch.Generator().manual_seed(5)


def draw(path: Path, seed: int) -> torch.Tensor:
    """A small photo of random patches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    photo = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    save_image(photo, path)
    return photo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    for index in range(40):
        draw(root / "clean/a" / f"a{index:02}.png", index)
    for index in range(20):
        draw(root / "pairs/clean" / f"p{index:02}.png", 100 + index)
        draw(root / "pairs/degraded" / f"p{index:02}.png", 200 + index)
    for index in range(20):
        draw(root / "rain_streaks" / f"{index // 2}-{4 + index % 2}.png", 300 + index)
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> dict:
    return make_split(folder)


def test_every_clean_photo_is_in_exactly_one_part(folder: Path, made: dict) -> None:
    listed = [name for names in made["parts"].values() for name in names]
    clean = {
        p.relative_to(folder).as_posix()
        for part in ("clean/a", "pairs/clean")
        for p in (folder / part).iterdir()
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == clean  # pairs by their clean photo, no degraded photo, no rain layer


def test_each_source_is_divided_in_proportion(made: dict) -> None:
    for source, total in (("clean/a/", 40), ("pairs/clean/", 20)):
        for part, share in SHARES.items():
            count = sum(name.startswith(source) for name in made["parts"][part])
            assert abs(count - share * total) <= 1


def test_layers_of_one_render_stay_together(made: dict) -> None:
    layers = made["rain_layers"]
    renders = {part: {Path(name).stem.split("-")[0] for name in names} for part, names in layers.items()}
    assert not renders["trained"] & renders["held_back"]
    assert {part: len(names) for part, names in layers.items()} == {"trained": 16, "held_back": 4}


def test_same_folder_and_seed_give_the_same_split_and_another_seed_another(folder: Path, made: dict) -> None:
    assert make_split(folder) == made
    assert make_split(folder, seed=made["seed"] + 1)["parts"] != made["parts"]


@pytest.mark.parametrize("change", ["same", "mirrored", "darker", "noisy"])
def test_near_copies_land_in_one_part(tmp_path: Path, change: str) -> None:
    changes = {
        "same": lambda x: x,
        "mirrored": lambda x: x.flip(-1),
        "darker": lambda x: 0.6 * x,
        "noisy": lambda x: (x + 0.03 * torch.randn(x.shape, generator=BASE)).clamp(0, 1),
    }
    (tmp_path / "b").mkdir()
    copies = 0
    for index in range(24):
        photo = draw(tmp_path / "a" / f"{index:02}.png", index)
        if index % 2:
            copies += 1
            save_image(changes[change](photo), tmp_path / "b" / f"copy{index:02}.png")
    parts = make_split(tmp_path)["parts"]
    place = {Path(name).name: part for part, names in parts.items() for name in names}
    assert copies == 12
    assert all(place[f"copy{index:02}.png"] == place[f"{index:02}.png"] for index in range(1, 24, 2))


def test_different_and_flat_photos_are_no_copies(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.png" for index in range(4)]
    for index, file in enumerate(files[:2]):
        draw(file, index)
    for file in files[2:]:
        save_image(torch.full((1, 3, 20, 30), 0.5), file)
    assert split.near_copies(split.thumbnails(files)) == []


def test_pair_members_share_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"parts": {"rain/clean/x.webp": "stop"}, "rain_layers": {"rain_streaks/7-4.png": "held_back"}}
    monkeypatch.setattr(split, "_listed", lambda: listed)
    assert (
        part_of("rain/clean/x.webp")
        == part_of("rain/degraded/x.webp")
        == part_of("rain\\clean\\x.webp")
        == "stop"
    )
    assert layer_part_of("7-4.png") == "held_back"


def test_photos_of_a_users_folder_fall_into_the_same_shares() -> None:
    parts = [part_of(f"holiday/IMG_{index:05}.jpg") for index in range(4000)]
    for part, share in SHARES.items():
        assert parts.count(part) / 4000 == pytest.approx(share, abs=0.02)
    assert part_of("mine/clean/IMG_1.png") == part_of("mine/degraded/IMG_1.jpg")
    layers = [layer_part_of(f"{index}x-4.png") for index in range(2000)]
    assert layers.count("held_back") / 2000 == pytest.approx(LAYER_SHARES["held_back"], abs=0.03)


def test_rain_layers_are_named_from_the_folders_parent(folder: Path) -> None:
    names = {part: rain_layers(part, folder / "rain_streaks") for part in ("trained", "held_back")}
    assert sorted(names["trained"] + names["held_back"]) == sorted(
        path.relative_to(folder).as_posix() for path in (folder / "rain_streaks").iterdir()
    )


def test_committed_list_keeps_its_promises() -> None:
    data = json.loads(split.SPLIT_FILE.read_text())
    for key, shares in (("parts", SHARES), ("rain_layers", LAYER_SHARES)):
        names = [name for part in shares for name in data[key][part]]
        assert len(names) == len(set(names))
        assert set(data[key]) == set(shares)
        for part, share in shares.items():
            assert len(data[key][part]) / len(names) == pytest.approx(share, abs=0.01)
            assert all("degraded" not in name and "\\" not in name for name in data[key][part])
    first = data["parts"]["routers"][0]
    assert part_of(first) == "routers"


@pytest.mark.parametrize("content", ["nothing", "only layers"])
def test_folder_without_photos_is_one_clear_error(tmp_path: Path, content: str) -> None:
    target = tmp_path / "none"
    if content == "only layers":
        draw(target / "rain_streaks" / "1-4.png", 1)
    with pytest.raises(ValueError, match="none"):
        make_split(target)


def test_command_line_writes_the_list(
    folder: Path, made: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(split, "SPLIT_FILE", tmp_path / "split.json")
    assert main(["split", "--data", str(folder)]) == 0
    assert json.loads((tmp_path / "split.json").read_text()) == made
    assert "clean/a 32" in capsys.readouterr().out
    assert main(["split", "--data", str(folder / "none")]) == 2
