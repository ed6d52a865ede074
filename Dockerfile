# The server in a container, with one example model.
#
#   docker build -t ensembled .                                  for the CPU
#   docker build -t ensembled:cuda --build-arg DEVICE=cuda .     for NVIDIA GPUs; run it with --gpus all
#
# DEVICE chooses torch's build. `cuda` takes the one on the Python package index, which on Linux is the CUDA build and
# brings its own CUDA libraries, so the base image is the same. Anything else is a name that `uv pip install
# --torch-backend` knows: `cpu`, or a particular build such as `cu126`. uv knows where PyTorch keeps each of them.

ARG BASE_IMAGE=python:3.11-slim-bookworm


FROM ${BASE_IMAGE} AS dependencies
ARG DEVICE=cpu
ENV VIRTUAL_ENV=/opt/ensembled \
    PATH=/opt/ensembled/bin:$PATH \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir --root-user-action=ignore "uv>=0.9,<1" \
 && uv venv --python "$(command -v python)" "$VIRTUAL_ENV"
WORKDIR /src
COPY pyproject.toml ./
# What is removed are tests, and the parts of torch for compiling C++ against it.
RUN --mount=type=cache,target=/root/.cache/uv \
    case "$DEVICE" in cuda) backend= ;; *) backend="--torch-backend=$DEVICE" ;; esac \
 && uv pip install $backend --requirements pyproject.toml \
 && cd "$VIRTUAL_ENV"/lib/python3*/site-packages \
 && rm -rf torch/test torch/include torch/share \
 && find torch/bin -type f ! -name torch_shm_manager -delete \
 && find . -type d -name tests -prune -exec rm -rf {} +


FROM dependencies AS package
COPY README.md ./
COPY ensemble ensemble
COPY app app
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --no-deps . && rm -f "$VIRTUAL_ENV/.lock"


# The model is trained here, so that what training needs stays out of the image.
FROM package AS example
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --requirements pyproject.toml --extra examples
COPY docs/examples docs/examples
# EXAMPLE: the same command as the Makefile's.
RUN ensembled build docs/examples/digits.py:trained /models/digits/1 --task classification --scale 0.1 --members 128


FROM ${BASE_IMAGE} AS server
LABEL org.opencontainers.image.title="ensembled" \
      org.opencontainers.image.description="Serve one trained PyTorch model as an ensemble of perturbed members that says how sure it is."
RUN groupadd --gid 10001 ensembled \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ensembled
# Nothing is written at run time, so the root file system can be read-only. torch makes its cache's directory when it is
# imported, even if nothing is put there, so it is told one that exists. `auto` is a GPU where torch sees one. There is no
# C++ compiler here, so calls are not compiled. The NVIDIA variables are read by NVIDIA's container runtime only.
ENV PATH=/opt/ensembled/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TORCHINDUCTOR_CACHE_DIR=/tmp \
    ENSEMBLED_DEVICE=auto \
    ENSEMBLED_COMPILE=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=package /opt/ensembled /opt/ensembled
COPY --from=example /models /models
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# http.client, not urllib: it ignores proxy variables, which Docker may set in a container.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", "\
from http.client import HTTPConnection; from os import environ; \
server = HTTPConnection('127.0.0.1', int(environ.get('ENSEMBLED_PORT', 8000)), timeout=4); \
server.request('GET', '/v2/health/ready'); \
raise SystemExit(server.getresponse().status != 200)"]
ENTRYPOINT ["ensembled"]
# --allow-public, because 0.0.0.0 is needed to be reached from outside the container at all. Who can reach it is decided
# by what is published: `-p 127.0.0.1:8000:8000` is this machine only. Ask for a key in front of it before more.
CMD ["serve", "--models", "/models", "--host", "0.0.0.0", "--allow-public"]
