"""The page: `python app.py`, also what a Hugging Face Space runs.

Environment: UNIRESTORER_CHECKPOINT (a folder, a name in checkpoints/ or a hub id, or several with commas
between them, the first at the root; default: all that ship),
UNIRESTORER_DEVICE (auto, cpu or cuda), UNIRESTORER_LIMITS (what visitors may take, such as
"jobs=16,seconds=60"), GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, GRADIO_TEMP_DIR (the folder of visitors'
photos, in which whatever is older than an hour is deleted), FORWARDED_ALLOW_IPS (proxies to believe).
"""

import os
import sys

# Read once, when gradio, huggingface_hub and uvicorn are imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if os.environ.get("SPACE_ID"):  # behind the Space's proxy, which alone reaches this port
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # noqa: F401 # pyright: ignore[reportMissingImports] - has to come before torch


def main() -> None:
    """Serve the page until SIGTERM or Ctrl-C; what keeps it from starting ends in one line and code 2."""
    try:
        run()
    except ValueError as error:
        sys.stderr.write(f"app.py: {' '.join(str(error).split())}\n")
        sys.exit(2)


def run() -> None:
    """Open the checkpoint and serve it. Raises ValueError."""
    from unirestorer.demo.hosting.host import choose_port, prepare_folder, read_limits

    limits = read_limits(os.environ.get("UNIRESTORER_LIMITS", ""))
    folder = prepare_folder()
    choose_port()

    from unirestorer import UniRestorer
    from unirestorer.checkpoint import shipped
    from unirestorer.demo.hosting.serve import open_desk, serve

    device = os.environ.get("UNIRESTORER_DEVICE", "auto")
    names = os.environ.get("UNIRESTORER_CHECKPOINT") or ",".join(shipped())
    models = [UniRestorer.from_pretrained(name.strip(), device=device) for name in names.split(",")]
    serve(open_desk(models, limits, folder, ahead=True))


if __name__ == "__main__":
    main()
