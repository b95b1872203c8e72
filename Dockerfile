# docker build -t prospect .                              for CPUs
# docker build -t prospect:cuda --build-arg DEVICE=cuda . with CUDA's libraries; the driver is the host's
# docs/operations.md#containers says what to know before an image is given to others.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-trixie

ARG DEVICE=cpu
WORKDIR /opt/prospect
COPY scripts/image.sh scripts/
RUN scripts/image.sh system "$DEVICE"

COPY Makefile requirements.lock ./
RUN scripts/image.sh packages "$DEVICE"

COPY pyproject.toml README.md LICENSE ./
COPY configs configs/
COPY jobs jobs/
COPY serve serve/
COPY platform platform/
RUN scripts/image.sh project

ENV PROSPECT_STORAGE_ROOT=/data \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
USER 1000
VOLUME /data
EXPOSE 8000
CMD ["prospect", "--help"]
