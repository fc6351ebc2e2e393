"""PSNR and SSIM against scikit-image and against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from unirestorer.metrics import luma, psnr, ssim


def pair(height: int = 40, width: int = 33, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Random 8-bit images and noisy copies, noisier from one to the next."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (batch, 3, height, width), generator=generator) / 255
    strength = torch.linspace(0.02, 0.2, batch).view(-1, 1, 1, 1)
    return x, (x + strength * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def bytes_of(x: Tensor) -> np.ndarray:
    return (x.permute(0, 2, 3, 1).numpy() * 255 + 0.5).astype(np.uint8)


def test_psnr_by_hand():
    x = torch.zeros(1, 3, 4, 4)
    for level in (1, 51, 255):
        assert psnr(x, x + level / 255) == [pytest.approx(-20 * math.log10(level / 255))]
    one = x.clone()
    one[0, 1, 2, 3] = 1  # one of 48 values is off by 1
    assert psnr(x, one) == [pytest.approx(10 * math.log10(48))]


def test_psnr_and_ssim_agree_with_scikit_image():
    x, y = pair()
    a, b = bytes_of(x), bytes_of(y)
    expected = [peak_signal_noise_ratio(p, q) for p, q in zip(a, b, strict=True)]
    assert psnr(x, y) == pytest.approx(expected, abs=1e-9)
    assert psnr(x, y) == sorted(psnr(x, y), reverse=True)
    options = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [structural_similarity(p, q, data_range=255, **options) for p, q in zip(a, b, strict=True)]
    assert ssim(x, y) == pytest.approx(expected, abs=1e-9)


def test_luma_agrees_with_scikit_image_and_with_matlab():
    x, y = pair()
    a, b = (rgb2ycbcr(bytes_of(z))[..., 0] / 255 for z in (x, y))
    expected = [peak_signal_noise_ratio(p, q, data_range=1) for p, q in zip(a, b, strict=True)]
    assert psnr(x, y, channel="y") == pytest.approx(expected, abs=1e-6)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = [structural_similarity(p, q, **options) for p, q in zip(a, b, strict=True)]
    assert ssim(x, y, channel="y") == pytest.approx(expected, abs=1e-6)
    # MATLAB: rgb2ycbcr of black, white, red, green, blue
    colours = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    assert (luma(colours)[:, 0] * 255).tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966])


def test_ssim_of_constants_by_hand():
    """Without variance  SSIM = (2 a b + c1) / (a^2 + b^2 + c1),  c1 = 0.01^2."""
    a, b = 102 / 255, 204 / 255
    x, y = torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b)
    assert ssim(x, y) == [pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4))]


@pytest.mark.parametrize("channel", ["rgb", "y"])
def test_identical_and_nearly_identical_images(channel: str):
    x, _ = pair()
    assert psnr(x, x, channel) == [100.0] * 3 and ssim(x, x, channel) == pytest.approx([1.0] * 3)
    assert psnr(x, (x + 0.4 / 255).clamp(0, 1), channel) == [100.0] * 3  # the same once rounded to 8 bits


def test_no_psnr_exceeds_the_cap():
    x = torch.zeros(1, 3, 300, 300)
    y = x.clone()
    y[0, 2, 0, 0] = 1 / 255  # 102 dB on RGB, more on luma
    assert psnr(x, y) == [100.0] and psnr(x, y, "y") == [100.0]


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (33, 21), (11, 11)])
def test_sizes(size: tuple[int, int]):
    x, y = pair(*size, batch=1)
    assert 5 < psnr(x, y)[0] < 60
    if min(size) >= 11:
        assert 0 < ssim(x, y)[0] < 1
    else:
        with pytest.raises(ValueError, match=f"got a side of {min(size)} px, expected at least 11"):
            ssim(x, y)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input(metric: object):
    x = torch.rand(2, 3, 16, 16)
    for other in (x[:1], x[:, :1], x[..., :15], x[0]):
        with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\) twice"):
            metric(x, other)
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\) twice"):
        metric(x[0], x[0])
    with pytest.raises(ValueError, match="got channel 'cb', expected 'rgb' or 'y'"):
        metric(x, x, channel="cb")
    with pytest.raises(ValueError, match="nan"):
        metric(x, x * float("nan"))
