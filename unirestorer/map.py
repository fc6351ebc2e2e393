"""The map of training DRs: where a new photo's DR lands, how far it is from anything known, how unusual its
e_gran is.

A UMAP fitted offline and kept as plain arrays. A new DR is placed by its nearest neighbours in DR space, as
UMAP's own transform begins; since far-away DRs also land inside the map, the distance percentile always goes
with the place.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

NEIGHBORS = 15
MAX_BYTES = 512 * 2**20  # unpacked


@dataclass(frozen=True)
class Placement:
    """A DR on the map."""

    xy: tuple[float, float]
    neighbors: tuple[int, ...]  # points of the map, nearest first
    distance: float  # mean distance to them in DR space
    distance_percentile: float  # share of held-out training photos that lie nearer, 0 to 100
    spread: float  # root mean square distance of the neighbours from xy, as a share of the map's width


@dataclass(frozen=True, eq=False)
class DegradationMap:
    """N training DRs in the plane. All fields are arrays, so that the file needs no pickle."""

    xy: np.ndarray  # (N, 2) single precision
    drs: np.ndarray  # (N, D) half precision, unit length
    leaf: np.ndarray  # (N,) leaf index, -1 = clean photo
    task: np.ndarray  # (N,) text: tasks joined by "+", or "clean"
    text: np.ndarray  # (N,) text: the recipe in words with its strength
    center_xy: np.ndarray  # (nodes, 2) centres of all levels, in the experts' order
    gran_reference: np.ndarray  # (M,) sorted mean log e_gran of held-out training photos
    distance_reference: np.ndarray  # (M,) sorted mean neighbour distance of the same photos

    @cached_property
    def _drs(self) -> np.ndarray:
        return self.drs.astype(np.float32)

    def nearest(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the map nearest to a DR e (D,), and their distances."""
        squared = np.maximum(2 - 2 * (self._drs @ e.astype(np.float32)), 0)  # both have unit length
        count = min(NEIGHBORS, len(squared))
        near = np.argpartition(squared, count - 1)[:count]
        near = near[np.argsort(squared[near], kind="stable")]
        return near, np.sqrt(squared[near])

    def place(self, e: np.ndarray) -> Placement:
        """Put a DR e (D,) on the map: its neighbours' places, weighted by inverse distance."""
        near, distance = self.nearest(e)
        weight = 1 / (distance + 1e-4)
        x, y = (weight[:, None] * self.xy[near]).sum(0) / weight.sum()
        width = float(np.ptp(self.xy, axis=0).max()) or 1.0
        spread = float(np.sqrt(((self.xy[near] - (x, y)) ** 2).sum(1).mean())) / width
        mean = float(distance.mean())
        return Placement(
            (float(x), float(y)),
            tuple(near.tolist()),
            mean,
            percentile(self.distance_reference, mean),
            spread,
        )

    def gran_percentile(self, mean_log_e_gran: float) -> float:
        """Share of held-out training photos whose estimate is surer, 0 to 100."""
        return percentile(self.gran_reference, mean_log_e_gran)

    def to_bytes(self) -> bytes:
        data = io.BytesIO()
        np.savez_compressed(data, **{f.name: getattr(self, f.name) for f in fields(self)})
        return data.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> DegradationMap:
        """Raises ValueError when the bytes are not a map, before a bomb is unpacked."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as parts:
                size = sum(part.file_size for part in parts.infolist())
            if size > MAX_BYTES:
                raise ValueError(f"over {MAX_BYTES // 2**20} MB when unpacked")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                made = cls(**{f.name: arrays[f.name] for f in fields(cls)})
            made.check()
        except Exception as error:  # archives raise nearly anything, from zlib.error to MemoryError
            raise ValueError(f"not a map of degradations ({error})") from None
        return made

    def check(self) -> None:
        """Raises ValueError when the arrays do not belong together."""
        points, references = len(self.xy), (self.gran_reference, self.distance_reference)
        plane = self.xy.shape[1:] == self.center_xy.shape[1:] == (2,)
        drs = self.drs.ndim == 2 and len(self.drs) == points > 0
        labels = all(part.shape == (points,) for part in (self.leaf, self.task, self.text))
        lists = all(part.ndim == 1 and len(part) > 0 for part in references)
        if not (plane and drs and labels and lists):
            raise ValueError("its arrays do not belong together")
        numbers = (self.xy, self.drs, self.center_xy, *references)
        if any(part.dtype.kind != "f" or not np.isfinite(part).all() for part in numbers):
            raise ValueError("its numbers are not finite")


def percentile(reference: np.ndarray, value: float) -> float:
    """Share of the sorted `reference` (M,) below `value`, 0 to 100; ties count half."""
    below = np.searchsorted(reference, value, "left") + np.searchsorted(reference, value, "right")
    return float(100 * below / (2 * len(reference)))
