"""The page's image input."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.processing_utils import save_base64_to_cache
from gradio.utils import is_in_or_equal


def photo_input(**options: Any) -> gr.Image:  # noqa: ANN401 - gr.Image's own
    """A gr.Image that hands over the file untouched, so that `load_image` alone decides what is a photo.

    Gradio's own preparation would raise on damaged files. (No subclass: Gradio writes a .pyi beside each.)
    """
    image = gr.Image(type="filepath", format="png", **options)

    def preprocess(payload: ImageData | None) -> str | None:
        if payload is None:
            return None
        if payload.url and payload.url.startswith("data:"):
            return save_base64_to_cache(payload.url, image.GRADIO_CACHE)
        if payload.path and not is_in_or_equal(payload.path, image.GRADIO_CACHE):
            # Gradio checks this of a FileData alone, and a program may leave that mark out.
            raise gr.Error("The photo has to be uploaded first.", print_exception=False)
        return payload.path

    image.preprocess = preprocess  # type: ignore[method-assign]
    return image
