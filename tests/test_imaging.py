"""Reading, writing, views and tiles: hand-made pixels, round trips and every kind of bad input."""

import io
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unirestorer.files import atomic_write, sha256
from unirestorer.imaging import (
    MAX_MEGAPIXELS,
    SUFFIXES,
    as_file,
    from_uint8,
    image_files,
    load_image,
    mirrored,
    run_tiled,
    save_image,
    to_pil,
    to_uint8,
    views,
)

SIZES = [(1, 1), (7, 500), (33, 21), (2, 3)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The networks here are so small that a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    """(B, 3, H, W) uniform on the 8-bit levels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator) / 255


def encoded(image: Image.Image, name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes = b"") -> bytes:
    """A PNG written by hand: its header may promise what its rows do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# What can be read


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("suffix", ["", ".png", ".PNG", ".webp", ".tif", ".tiff", ".bmp"])
def test_lossless_formats_return_the_same_bits(tmp_path: Path, size: tuple[int, int], suffix: str):
    x = noise(*size)
    save_image(x, tmp_path / f"photo{suffix}")
    assert torch.equal(load_image(tmp_path / f"photo{suffix}"), x)


def test_jpeg_is_of_high_quality_and_keeps_full_colour_resolution(tmp_path: Path):
    x = torch.zeros(1, 3, 64, 64)
    x[:, 0, :, ::2] = 1  # red lines of one pixel, which 4:2:0 would wash out
    save_image(x, tmp_path / "a.jpg")
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"
    assert (load_image(tmp_path / "a.jpg") - x).abs().max() < 0.1


def test_every_kind_of_source_gives_the_same_tensor(tmp_path: Path):
    x = noise(5, 8)
    path = tmp_path / "photo.png"
    save_image(x, path)
    array = to_uint8(x)
    with path.open("rb") as file:
        sources = [path, str(path), path.read_bytes(), file, Image.open(path), to_pil(x)]
        sources += [
            array,
            array / 255,
            (array / 255).astype(">f4"),
            array[:, ::-1][:, ::-1],
            array.astype(np.uint16) * 257,
        ]
        sources += [x, x[0], x.double(), torch.from_numpy(array).permute(2, 0, 1)]
        for source in sources:
            loaded = load_image(source)
            assert loaded.dtype == torch.float32 and loaded.shape == (1, 3, 5, 8) and loaded.is_contiguous()
            torch.testing.assert_close(loaded, x, atol=1e-7, rtol=0)


def test_the_caller_keeps_its_own_memory():
    for source in (
        torch.full((1, 3, 2, 2), 0.5),
        np.full((2, 2, 3), 0.5, np.float32),
        np.full((2, 2), 9, np.uint8),
    ):
        load_image(source)[:] = 0
        assert float(source.min()) > 0


def test_grey_arrays_become_three_equal_channels():
    grey = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    for source in (grey, grey[..., None]):
        assert torch.equal(load_image(source), torch.from_numpy(grey).expand(1, 3, 3, 4))


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("LA", (100, 51), (224, 224, 224)),  # 0.2 * 100 + 0.8 * 255
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 100, 255, 51), (204, 224, 255)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("I;16", 32768, (127.501946,) * 3),  # 32768 / 65535 * 255
        ("I;16", 65535, (255, 255, 255)),
        ("I;16B", 256, (0.99610895,) * 3),
        ("I", 65535, (255, 255, 255)),
        ("F", 0.25, (63.75, 63.75, 63.75)),
    ],
)
def test_modes_become_rgb(mode: str, pixel: object, expected: tuple[float, ...]):
    image = Image.new(mode, (3, 2), pixel)
    sources = [image]
    sources += [encoded(image)] if mode in ("1", "L", "RGB", "LA", "RGBA", "I;16") else []
    sources += [encoded(image, "TIFF")]
    for source in sources:
        colour = load_image(source)[0, :, 1, 1] * 255
        assert colour.tolist() == pytest.approx(expected, abs=0.51 if mode == "LA" else 1e-4)


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 50])
    image.putpixel((1, 0), 1)
    assert (load_image(encoded(image))[0, :, 0] * 255).T.round().tolist() == [[200, 10, 20], [30, 40, 50]]
    see_through = encoded(image, transparency=1)
    assert (load_image(see_through)[0, :, 0] * 255).T.round().tolist() == [[200, 10, 20], [255, 255, 255]]
    assert (load_image(encoded(image, "GIF"))[0, :, 0, 0] * 255).round().tolist() == [200, 10, 20]


def test_16_bit_files_use_their_whole_range():
    ramp = np.arange(0, 65536, 5, dtype=np.uint16).reshape(4, -1)
    loaded = load_image(encoded(Image.fromarray(ramp)))
    assert torch.equal(loaded, torch.from_numpy(ramp / np.float32(65535)).expand(1, 3, -1, -1))
    big_endian = ramp.astype(">u2")
    rows = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in big_endian)
    colour = load_image(png(ramp.shape[1], 4, 16, 2, rows))  # Pillow keeps the upper 8 bits
    assert (colour - loaded).abs().max() <= 1 / 255


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    for name in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if name == "WEBP" else {}
        data = encoded(frames[0], name, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert load_image(data)[0, :, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(
    name: str, orientation: int, upright: Callable[[np.ndarray], np.ndarray]
):
    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :16] = (255, 0, 0)
    array[8:, 16:] = (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(name, {})
    data = encoded(Image.fromarray(array), name, exif=exif, **options)
    loaded = to_uint8(load_image(data)).astype(int)
    expected = upright(array)
    assert loaded.shape == expected.shape and np.abs(loaded - expected).max() <= 3


def test_nearly_100_megapixels_load_without_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # Pillow warns above this and refuses above 800
    monkeypatch.setattr("unirestorer.imaging.MAX_MEGAPIXELS", 600 / 1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(encoded(Image.new("L", (25, 24)))).shape == (1, 3, 24, 25)
        for side in (26, 40):  # over our limit, over Pillow's too
            with pytest.raises(ValueError, match="megapixels"):
                load_image(encoded(Image.new("L", (25, side))))


def test_several_threads_leave_the_warning_filters_alone(monkeypatch: pytest.MonkeyPatch):
    data, before, delays = encoded(Image.new("RGB", (9, 9))), list(warnings.filters), iter([0.01, 0.03])
    opened = Image.open

    def slowly(file: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
        time.sleep(next(delays))  # the first thread would be done while the second is inside
        return opened(file, formats=formats)

    monkeypatch.setattr(Image, "open", slowly)
    threads = [threading.Thread(target=load_image, args=(data,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# What cannot be read


def photo_bytes(name: str) -> bytes:
    return encoded(to_pil(noise(64, 64)), name)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "an empty file"),
    "text.png": (b"I am no picture.\n" * 20, "no readable image"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>', "no readable image"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no readable image"),
    "zero.png": (png(0, 5, 8, 2), "got "),
    "empty_rows.png": (png(4, 4, 8, 2), "damaged or truncated"),
    "bomb.png": (png(20_000, 10_000, 8, 2), "over 100 megapixels"),
    "header_bomb.png": (png(2**31 - 1, 2**31 - 1, 8, 2), "over 100 megapixels"),
    "above_our_limit.png": (png(12_000, 10_000, 1, 0), "over 100 megapixels"),
    "integers.tif": (encoded(Image.new("I", (2, 2), -5), "TIFF"), "int32"),
    "floats.tif": (encoded(Image.new("F", (2, 2), 3.5), "TIFF"), "values from 3.5 to 3.5"),
    **{
        f"cut.{name.lower()}": (photo_bytes(name)[: len(photo_bytes(name)) // 2], "got ")
        for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
    },
    "only_header.png": (photo_bytes("PNG")[:40], "got "),
    "signature.png": (photo_bytes("PNG")[:8], "got "),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_clear_sentence(tmp_path: Path, name: str):
    data, got = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError) as caught:
            load_image(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert message.startswith(f"{name}: got ") and got in message and ", expected " in message
    assert "\n" not in message and str(tmp_path) not in message
    if data:
        with pytest.raises(ValueError, match="^image: got "):
            load_image(data)


def test_a_name_with_line_breaks_stays_one_sentence(tmp_path: Path):
    path = tmp_path / "a\n\rb.png"
    path.write_bytes(b"no photo")
    with pytest.raises(ValueError, match="^a b.png: got no readable image") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_a_real_bomb_is_refused_before_it_is_decoded(tmp_path: Path):
    path = tmp_path / "bomb.png"
    Image.new("1", (15_000, 14_000)).save(path)
    assert path.stat().st_size < 1e6 and MAX_MEGAPIXELS * 1e6 < 15_000 * 14_000
    with pytest.raises(ValueError, match="over 100 megapixels"):
        load_image(path)
    image = Image.new("1", (11_000, 10_000))
    with pytest.raises(ValueError, match="over 100 megapixels"):
        load_image(image)


def test_paths_without_a_readable_file(tmp_path: Path):
    with pytest.raises(ValueError, match="^gone.png: got .*No such file.*expected.*check the path"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="^folder.png: got .*directory.*expected.*check the path"):
        (tmp_path / "folder.png").mkdir()
        load_image(str(tmp_path / "folder.png"))
    with pytest.raises(ValueError, match="No such file"):
        load_image("https://example.org/photo.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path):
    path = tmp_path / "secret.png"
    save_image(noise(2, 2), path)
    path.chmod(0)
    with pytest.raises(ValueError, match="^secret.png: got .*Permission denied"):
        load_image(path)


@pytest.mark.parametrize(
    ("source", "got"),
    [
        (np.zeros((0, 4, 3), np.uint8), "4x0 pixels"),
        (np.zeros((3, 4, 5)), r"shape \(3, 4, 5\)"),
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros((1, 4, 4, 3)), "shape"),
        (np.zeros(7), "shape"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4), bool), "bool"),
        (np.full((2, 2, 3), 255.0), "values from 255 to 255"),
        (np.full((2, 2, 3), -0.1), "values from -0.1"),
        (np.array([[0.5, np.nan]]), "nan"),
        (np.array([[0.5, np.inf]]), "inf"),
        (torch.zeros(4, 4), "shape"),
        (torch.zeros(4, 4, 3), "shape"),
        (torch.zeros(2, 3, 4, 4), "shape"),
        (torch.zeros(1, 3, 0, 4), "4x0 pixels"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "int32"),
        (torch.full((3, 4, 4), float("nan")), "nan"),
        (torch.full((3, 4, 4), float("-inf")), "inf"),
        (Image.new("RGB", (0, 3)), "0x3 pixels"),
        (Image.new("I;16", (0, 3)), "0x3 pixels"),
        (None, "NoneType"),
        (17, "int"),
        (["a.png"], "list"),
    ],
)
def test_bad_values_in_memory(source: object, got: str):
    with pytest.raises(ValueError, match=rf"^\w+: got .*{got}.*, expected "):
        load_image(source)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's notes on the metadata that we damaged
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_flipped_bytes_raise_nothing_but_value_error(name: str):
    whole, generator = encoded(to_pil(noise(24, 24)), name), np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        data = bytearray(whole)
        for place in generator.integers(0, min(len(data), 400), size=4):
            data[place] = generator.integers(0, 256)
        try:
            assert load_image(bytes(data)).shape[:2] == (1, 3)
        except ValueError:
            refused += 1
    assert refused > 0


# Folders


def test_folders_are_searched_in_order(tmp_path: Path):
    wanted = ["a.png", "b.JPG", "deep/d.tiff", "deep/er/c.webp"]
    for name in [*wanted, "notes.txt", ".hidden.png", "e.svg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = image_files([tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == wanted
    assert image_files([tmp_path / "notes.txt", tmp_path, tmp_path / "a.png"]) == [
        tmp_path / "notes.txt",
        *found,
    ]
    assert image_files([tmp_path / "gone.png"]) == [tmp_path / "gone.png"]
    assert image_files([str(tmp_path / "deep")]) == found[2:]


def test_nothing_found_is_an_error(tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    for paths in ([tmp_path], []):
        with pytest.raises(ValueError, match="got no image, expected files ending in .png"):
            image_files(paths)


def test_every_suffix_is_known_to_pillow():
    assert set(SUFFIXES) <= set(Image.registered_extensions())


# 8 bits


def test_rounding_is_half_up_and_clipped():
    values = torch.tensor(
        [-1.0, 0.0, 0.49 / 255, 0.5 / 255, 1.5 / 255, 2.5 / 255, 254.4 / 255, 1.0, 7.0, float("inf")]
    )
    expected = [0, 0, 0, 1, 2, 3, 254, 255, 255, 255]
    assert to_uint8(values.expand(3, 1, -1))[0, :, 1].tolist() == expected


def test_all_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(to_uint8(from_uint8(levels)), levels)
    array = to_uint8(noise(9, 4))
    assert array.shape == (9, 4, 3) and np.array_equal(to_uint8(from_uint8(array)[0]), array)
    assert np.array_equal(np.asarray(to_pil(from_uint8(array))), array)
    assert np.array_equal(to_uint8(from_uint8(array).double()), array)


def test_windows_are_the_photos_one_by_one():
    windows = np.stack([to_uint8(noise(9, 4, seed=seed)) for seed in range(3)])
    windows.setflags(write=False)  # as a file's map may be
    x = from_uint8(windows)
    assert torch.equal(x, torch.cat([from_uint8(window) for window in windows]))
    assert torch.equal(x, from_uint8(torch.tensor(windows)))
    assert x.is_contiguous(memory_format=torch.channels_last) and from_uint8(windows[0]).is_contiguous()


def test_as_file_is_what_a_saved_file_gives_back(tmp_path: Path):
    x = noise(9, 4) * 1.1 - 0.03
    save_image(x, tmp_path / "a.png")
    assert torch.equal(as_file(x), load_image(tmp_path / "a.png"))
    assert not torch.equal(as_file(x), x) and torch.equal(as_file(as_file(x)), as_file(x))


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, 4, 4), torch.zeros(4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(4, 4, 3)]
)
def test_one_rgb_image_is_written_at_a_time(x: Tensor):
    with pytest.raises(ValueError, match="shape"):
        to_uint8(x)


def test_nan_is_never_written(tmp_path: Path):
    with pytest.raises(ValueError, match="nan"):
        save_image(torch.full((3, 2, 2), float("nan")), tmp_path / "a.png")
    with pytest.raises(ValueError, match="float64"):
        from_uint8(np.zeros((2, 2, 3)))
    assert not list(tmp_path.iterdir())


# Atomic files


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    function: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "report.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(error)):
        atomic_write(path, b"half of it")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_write_takes_up_what_one_of_its_token_left(tmp_path: Path):
    (tmp_path / ".mine.tmp").write_bytes(b"much more than is written now")
    atomic_write(tmp_path / "report.json", b"new", token="mine")
    assert (tmp_path / "report.json").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_failing_save_leaves_the_old_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "photo.png"
    save_image(noise(4, 4), path)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(OSError, match="No space left"):
                save_image(noise(4, 4, seed=1), path)
        assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_and_a_folder_as_target_are_os_errors(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        save_image(noise(2, 2), tmp_path / "gone" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError):
        save_image(noise(2, 2), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


def test_links_and_permissions_survive(tmp_path: Path):
    target, link, fresh = tmp_path / "target.png", tmp_path / "link.png", tmp_path / "fresh.png"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    save_image(noise(2, 2), link)
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o640
    assert torch.equal(load_image(target), noise(2, 2))
    (tmp_path / "plain").touch()
    save_image(noise(2, 2), fresh)
    assert fresh.stat().st_mode == (tmp_path / "plain").stat().st_mode  # not mkstemp's 0600


def test_a_suffix_that_cannot_be_written(tmp_path: Path):
    for name in ("a.gif", "a.xyz", "a.svg"):
        with pytest.raises(ValueError, match=rf"^{name}: got \.\w+, expected \.png .*, change the suffix"):
            save_image(noise(2, 2), tmp_path / name)
    with pytest.raises(
        ValueError, match=r"^a.webp: got 16384 px a side, expected at most 16383 in WEBP, use PNG"
    ):
        save_image(torch.zeros(3, 1, 16384), tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


def test_sha256():
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Padding and views


@pytest.mark.parametrize(("border_twice", "mode"), [(True, "symmetric"), (False, "reflect")])
@pytest.mark.parametrize("size", [1, 2, 3, 17])
def test_mirroring_is_numpys_however_far_it_goes(size: int, border_twice: bool, mode: str):
    index = mirrored(torch.arange(-40, size + 50), size, border_twice=border_twice)
    assert np.array_equal(index.numpy(), np.pad(np.arange(size), (40, 50), mode=mode))


@pytest.mark.parametrize(
    ("size", "origins"),
    [
        ((224, 224), [(0, 0)]),
        ((335, 335), [(55, 55)]),
        ((336, 336), [(56, 56), (0, 0), (0, 112), (112, 0), (112, 112)]),
        ((336, 335), [(56, 55), (0, 55), (112, 55)]),
        ((224, 336), [(0, 56), (0, 0), (0, 112)]),
        ((400, 500), [(88, 138), (0, 0), (0, 276), (176, 0), (176, 276)]),
    ],
)
def test_the_view_policy(size: tuple[int, int], origins: list[tuple[int, int]]):
    x = noise(*size, batch=2)
    seen = views(x)
    assert seen.shape == (2, len(origins), 3, 224, 224)
    for index, (top, left) in enumerate(origins):
        assert torch.equal(seen[:, index], x[:, :, top : top + 224, left : left + 224])


@pytest.mark.parametrize("size", [*SIZES, (100, 223), (1, 336)])
def test_small_photos_are_mirrored_at_both_ends(size: tuple[int, int]):
    x = noise(*size)
    margins = [(max(224 - side, 0) // 2, max(224 - side, 0) - max(224 - side, 0) // 2) for side in size]
    expected = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), *margins), mode="reflect"))
    seen = views(x)
    assert seen.shape[1] == (3 if max(size) >= 336 else 1)
    left = (expected.shape[3] - 224) // 2
    assert torch.equal(seen[:, 0], expected[..., left : left + 224])


def test_views_keep_the_noise_level():
    x = (0.5 + 0.1 * torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    seen = views(x)
    quarters = x.unfold(2, 224, 224).unfold(
        3, 224, 224
    )  # (1, 3, 2, 2, 224, 224): of 448 px the corners are quarters
    for index in range(4):
        assert seen[0, 1 + index].std().item() == pytest.approx(
            quarters[0, :, index // 2, index % 2].std().item(), abs=1e-6
        )
    assert torch.equal(seen[0, 1:].flatten().sort()[0], x.flatten().sort()[0])  # every pixel once, unchanged


# Tiles


class Local(nn.Module):
    """Convolutions whose receptive field is `radius` px to each side; nothing is trained."""

    def __init__(self, radius: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 5, padding=2) for _ in range(radius // 2)))
        self.shapes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append((x.shape[2], x.shape[3]))
        return x + torch.tanh(self.layers(x))


class Grid(Local):
    """A small U-net: pads to 8, goes down to 1/8 and back, so that its output depends on its grid's phase."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 8, stride=8), nn.ConvTranspose2d(4, 3, 8, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append((x.shape[2], x.shape[3]))
        height, width = x.shape[2:]
        padded = nn.functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        return x + self.up(torch.tanh(self.down(padded)))[:, :, :height, :width]


@pytest.mark.parametrize("size", [(1, 1), (7, 150), (33, 21), (64, 64), (81, 130), (65, 1)])
@pytest.mark.parametrize(
    ("tile", "halo", "multiple"),
    [(64, 6, 1), (32, 6, 8), (48, 16, 16), (16, 8, 8), (8, 6, 8), (9, 7, 1), (20, 8, 4)],
)
@pytest.mark.parametrize("network", [Local(), Grid()], ids=["local", "grid"])
@torch.no_grad()
def test_tiles_equal_the_whole(size: tuple[int, int], tile: int, halo: int, multiple: int, network: Local):
    if isinstance(network, Grid) and multiple % 8:
        pytest.skip("the grid needs tiles on multiples of 8")
    x = noise(*size)
    whole = network(x)
    network.shapes.clear()
    tiled = run_tiled(network, x, tile, halo, multiple)
    torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=0)
    longest = tile + 2 * (halo + multiple) + multiple
    assert max(max(shape) for shape in network.shapes) <= longest
    if max(size) <= tile:
        assert torch.equal(tiled, whole) and network.shapes == [size]


@torch.no_grad()
def test_tiles_off_the_grid_would_differ():
    x = noise(80, 80)
    network = Grid()
    assert (run_tiled(network, x, 44, 8, 4) - network(x)).abs().max() > 1e-2


@torch.no_grad()
def test_a_halo_that_is_too_small_is_blended_without_a_step():
    def shifted(x: Tensor) -> Tensor:  # depends on the whole input: no halo can be right
        return torch.full_like(x, float(x.mean()))

    x = torch.linspace(0, 1, 160).expand(1, 3, 64, 160)
    row = run_tiled(shifted, x, tile=64, halo=0, multiple=8)[0, 0, 20]
    assert row[0] < 0.25 and row[-1] > 0.75
    # the means of neighbouring tiles lie 0.3 apart; 16 blended pixels make that 17 steps
    assert row.diff().abs().max() <= 0.35 / 17 + 1e-6


def test_tiles_tell_their_progress_and_refuse_nonsense():
    shares: list[float] = []
    run_tiled(lambda x: x, noise(100, 70), tile=40, halo=8, multiple=8, progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 12
    run_tiled(lambda x: x, noise(4, 4), tile=40, halo=8, multiple=8, progress=shares.append)
    assert shares[-2:] == [1, 1]
    for tile, halo in ((4, 8), (0, 8), (40, -1)):
        with pytest.raises(ValueError, match="expected tile >= 8 and halo >= 0"):
            run_tiled(lambda x: x, noise(9, 9), tile, halo, 8)


def test_tiles_keep_the_type_of_the_photo():
    assert run_tiled(lambda x: x.half(), noise(40, 40), tile=16, halo=8, multiple=8).dtype == torch.float32
