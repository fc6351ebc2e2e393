"""The page: `python app.py`, also what a Hugging Face Space runs.

Environment: UNIRESTORER_CHECKPOINT (a folder, a name in checkpoints/ or a hub id; default "single"),
UNIRESTORER_DEVICE (auto, cpu or cuda), GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.
"""

import os
import sys

# Read once, when gradio and huggingface_hub are imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def main() -> None:
    """Serve the page until interrupted; a checkpoint that cannot be opened ends in one line and code 2."""
    from unirestorer import UniRestorer
    from unirestorer.demo.layout import build_page, launch_options

    try:
        model = UniRestorer.from_pretrained(
            os.environ.get("UNIRESTORER_CHECKPOINT", "single"),
            device=os.environ.get("UNIRESTORER_DEVICE", "auto"),
        )
    except ValueError as error:
        sys.stderr.write(f"app.py: {error}\n")
        sys.exit(2)
    build_page(model, ahead=True).launch(**launch_options())


if __name__ == "__main__":
    main()
