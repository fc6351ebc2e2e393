"""PSNR and SSIM as this field reports them, through scikit-image (imported late: it takes 0.3 s)."""

from functools import partial

import numpy as np
from torch import Tensor

from unirestorer.imaging import to_uint8

MAX_PSNR = 100.0  # dB, given to identical images
SSIM_WINDOW_PX = 11  # a Gaussian of sigma 1.5 cut at 3.5 sigma


def psnr(x: Tensor, y: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each pair in dB, at most `MAX_PSNR`:  -10 log10 mean((x - y)^2).

    x, y are (B, 3, H, W) in [0, 1], rounded to 8 bits first, as saved files are.
    """
    from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):  # of identical images it is infinite
        return [min(float(peak_signal_noise_ratio(a, b, data_range=1)), MAX_PSNR) for a, b in _pairs(x, y)]


def ssim(x: Tensor, y: Tensor) -> list[float]:
    """Structural similarity of each pair (Gaussian window, population covariance, mean over the channels).

    x, y are (B, 3, H, W) in [0, 1], at least `SSIM_WINDOW_PX` a side, rounded to 8 bits first.
    """
    from skimage.metrics import structural_similarity

    if min(x.shape[-2:]) < SSIM_WINDOW_PX:
        side_px = min(x.shape[-2:])
        raise ValueError(f"got a side of {side_px} px, expected at least {SSIM_WINDOW_PX} for SSIM, use PSNR")
    options = {"data_range": 1, "channel_axis": 2, "gaussian_weights": True, "sigma": 1.5}
    score = partial(structural_similarity, use_sample_covariance=False, **options)
    return [float(np.mean(score(a, b))) for a, b in _pairs(x, y)]


def _pairs(x: Tensor, y: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each pair as float64 (H, W, 3)."""
    if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"got {tuple(x.shape)}, {tuple(y.shape)}, expected (B, 3, H, W) twice, match them")
    return [(to_uint8(a) / 255, to_uint8(b) / 255) for a, b in zip(x, y, strict=True)]
