"""PSNR and SSIM as this field reports them, through scikit-image (imported late: it takes 0.3 s)."""

from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor

from unirestorer.imaging import to_uint8

Channel = Literal["rgb", "y"]

MAX_PSNR = 100.0  # dB, given to identical images
SSIM_WINDOW_PX = 11  # a Gaussian of sigma 1.5 cut at 3.5 sigma


def psnr(x: Tensor, y: Tensor, channel: Channel = "rgb") -> list[float]:
    """Peak signal-to-noise ratio of each pair in dB, at most `MAX_PSNR`:  -10 log10 mean((x - y)^2).

    x, y are (B, 3, H, W) in [0, 1], rounded to 8 bits first, as saved files are; `channel="y"` compares luma.
    """
    from skimage.metrics import peak_signal_noise_ratio

    scores = []
    for a, b in _pairs(x, y, channel):
        same = np.array_equal(a, b)
        scores.append(MAX_PSNR if same else min(float(peak_signal_noise_ratio(a, b, data_range=1)), MAX_PSNR))
    return scores


def ssim(x: Tensor, y: Tensor, channel: Channel = "rgb") -> list[float]:
    """Structural similarity of each pair (Gaussian window, population covariance, mean over the channels).

    x, y are (B, 3, H, W) in [0, 1], at least `SSIM_WINDOW_PX` a side, rounded to 8 bits first.
    """
    from skimage.metrics import structural_similarity

    if min(x.shape[-2:]) < SSIM_WINDOW_PX:
        side_px = min(x.shape[-2:])
        raise ValueError(f"got a side of {side_px} px, expected at least {SSIM_WINDOW_PX} for SSIM, use PSNR")
    options = {"data_range": 1, "channel_axis": 2, "gaussian_weights": True, "sigma": 1.5}
    score = partial(structural_similarity, use_sample_covariance=False, **options)
    return [float(np.mean(score(a, b))) for a, b in _pairs(x, y, channel)]


def luma(rgb: np.ndarray) -> np.ndarray:
    """BT.601 luma, MATLAB's rgb2ycbcr / 255 unrounded: (..., 3) in [0, 1] -> (..., 1) in [16, 235] / 255."""
    return (16 + rgb @ np.array([[65.481], [128.553], [24.966]])) / 255


def _pairs(x: Tensor, y: Tensor, channel: Channel) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each pair as float64 (H, W, 3), or (H, W, 1) for luma."""
    if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"got {tuple(x.shape)}, {tuple(y.shape)}, expected (B, 3, H, W) twice, match them")
    if channel not in ("rgb", "y"):
        raise ValueError(f"got channel {channel!r}, expected 'rgb' or 'y', choose one")
    arrays = [(to_uint8(a) / 255, to_uint8(b) / 255) for a, b in zip(x, y, strict=True)]
    return [(luma(a), luma(b)) for a, b in arrays] if channel == "y" else arrays
