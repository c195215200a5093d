# Two images from one file: `service` (API, coordinator, Ray head; no torch) and `worker` (all of it).
#   docker build --target service -t nightsweep-service .
#   docker build --target worker  -t nightsweep-worker  .
# Python and Ray must be the same version on every node of a Ray cluster: both images share one base.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NIGHTSWEEP_HOME=/var/lib/nightsweep
# Where pip looks for packages while the image is built; not set means where it always looks.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN useradd --create-home --uid 10001 nightsweep \
 && install --directory --owner=nightsweep --mode=700 /var/lib/nightsweep /var/lib/nightsweep/artifacts \
 && install --directory --owner=nightsweep /home/nightsweep/.cache /home/nightsweep/.cache/huggingface /data
WORKDIR /opt/nightsweep
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY search_spaces search_spaces
COPY workers workers
COPY service service
COPY migrations migrations
COPY examples/quickstart examples/quickstart

FROM base AS service
RUN pip install --constraint constraints.txt '.[coordinator]'
USER nightsweep
CMD ["nightsweep", "api", "--host", "0.0.0.0"]

FROM base AS worker
# On a GPU box this takes the CUDA build of torch, which is what a plain `pip install torch` gives.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && pip install --constraint constraints.txt '.[worker]'
USER nightsweep
