"""Settings of the whole test run: no network, few threads, CUDA tests only where there is a GPU."""

import os

# Before gradio and huggingface_hub are imported: both read these once, at import.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from pathlib import Path

import pytest
import torch
from helpers import make_tiny_checkpoint

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `cuda` on a machine without a CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that every command accepts; to be read only."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")
