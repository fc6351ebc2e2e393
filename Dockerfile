# The page, as a user without rights. Nothing is written but visitors' photos, below /tmp:
#   docker build -t unirestorer .
#   docker run --rm -p 7860:7860 --read-only --tmpfs /tmp --stop-timeout 30 unirestorer
FROM python:3.11-slim

RUN useradd --uid 1000 --create-home visitor
WORKDIR /app

COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt

COPY app.py pyproject.toml README.md LICENSE ./
COPY unirestorer ./unirestorer
COPY assets ./assets
COPY checkpoints ./checkpoints

ENV GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_TEMP_DIR=/tmp/unirestorer \
    HF_HOME=/tmp/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000
EXPOSE 7860
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/healthz', timeout=9)"]

CMD ["python", "app.py"]
