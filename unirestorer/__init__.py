"""UniRestorer: universal image restoration whose routing can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unirestorer.types import Decision, Estimate, Restoration, Route, Task

if TYPE_CHECKING:
    from unirestorer.pipeline import UniRestorer

__version__ = "0.1.0"

__all__ = ["Decision", "Estimate", "Restoration", "Route", "Task", "UniRestorer"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "UniRestorer":  # imported late: the pipeline needs seconds that `--help` should not cost
        from unirestorer.pipeline import UniRestorer

        return UniRestorer
    raise AttributeError(f"module 'unirestorer' has no attribute {name!r}")
