# The server in a container, with one example model.
#
#   docker build -t ensembled .                                  for the CPU
#   docker build -t ensembled:cuda --build-arg DEVICE=cuda .     for NVIDIA GPUs; run it with --gpus all
#   docker build -t ensembled --build-arg COMPILER=1 .           with a C++ compiler beside
#
# DEVICE chooses torch's build. `cuda` takes the one on the Python package index, which on Linux is the CUDA build and
# brings its own CUDA libraries, so the base image is the same. Anything else is a name that `uv pip install
# --torch-backend` knows: `cpu`, or a particular build such as `cu126`. uv knows where PyTorch keeps each of them. With
# `cpu` comes OpenVINO, which compiles calls for the processor and needs no compiler.
#
# COMPILER=1 adds g++ and PyTorch's headers, with `cuda` CUDA's too, with which TorchInductor compiles calls as well: on
# the CPU faster than OpenVINO for some small models whose members share most weights. On a GPU calls are recorded as
# CUDA graphs without it, and nothing is compiled. It is off by default: 300 MB more, and whoever breaks in finds a
# compiler. It makes shared libraries and takes 300 MB of /cache while it compiles, so with a read-only root mount a
# volume there.

ARG BASE_IMAGE=python:3.11-slim-bookworm


FROM ${BASE_IMAGE} AS dependencies
ARG DEVICE=cpu
ARG COMPILER=0
ENV VIRTUAL_ENV=/opt/ensembled \
    PATH=/opt/ensembled/bin:$PATH \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir --root-user-action=ignore "uv>=0.9,<1" \
 && uv venv --python "$(command -v python)" "$VIRTUAL_ENV"
WORKDIR /src
COPY pyproject.toml ./
# What is removed are tests, what is for compiling C++ against these packages, and of OpenVINO what is for other devices
# and other sources than PyTorch, and its telemetry. It imports `packaging`, and does not say that it requires it.
RUN --mount=type=cache,target=/root/.cache/uv \
    case "$DEVICE" in cuda) backend= ;; *) backend="--torch-backend=$DEVICE" ;; esac \
 && case "$DEVICE" in cpu) openvino="--extra openvino packaging" ;; *) openvino= ;; esac \
 && case "$DEVICE$COMPILER" in cuda1) headers="cuda-toolkit[cccl,crt]" ;; *) headers= ;; esac \
 && uv pip install $backend --requirements pyproject.toml $openvino $headers \
 && uv pip uninstall openvino-telemetry \
 && cd "$VIRTUAL_ENV"/lib/python3*/site-packages \
 && rm -rf torch/test torch/share \
 && if [ "$COMPILER" != 1 ]; then rm -rf torch/include; fi \
 && if [ -d openvino ]; then cd openvino \
     && rm -rf cmake include tools/benchmark libs/cache.json \
     && rm -rf frontend/jax frontend/onnx frontend/paddle frontend/tensorflow \
     && find libs -name 'libopenvino_*' ! -name '*_intel_cpu_plugin.*' ! -name '*_ir_frontend.*' \
        ! -name '*_pytorch_frontend.*' -delete \
     && cd ..; fi \
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
ARG COMPILER=0
LABEL org.opencontainers.image.title="ensembled" \
      org.opencontainers.image.description="Serve one trained PyTorch model as an ensemble of perturbed members that says how sure it is."
RUN if [ "$COMPILER" = 1 ]; then apt-get update && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log; fi
# /cache is for what is compiled, and for plans. It is the one place of the image that the service may write to; where
# the root file system is read-only and nothing is mounted there, it takes a directory in /tmp and begins anew each
# time. Nothing is put there beforehand: it would fit machines with the builder's processor and threads only.
RUN groupadd --gid 10001 ensembled \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ensembled \
 && install --directory --owner=10001 --group=10001 --mode=700 /cache
# torch makes its cache's directory when it is imported, even if nothing is put there, so it is told one that exists.
# `auto` is a GPU where torch sees one. XDG_CACHE_HOME and not ENSEMBLED_CACHE_DIR: the service then makes a directory
# of its own in what is mounted, whoever that belongs to. TMPDIR, since /tmp may be small and not permit executing, and
# TorchInductor puts headers and libraries there; what cannot write to /cache takes /tmp all the same. The NVIDIA
# variables are read by NVIDIA's container runtime only.
ENV PATH=/opt/ensembled/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TORCHINDUCTOR_CACHE_DIR=/cache \
    XDG_CACHE_HOME=/cache \
    TMPDIR=/cache \
    ENSEMBLED_DEVICE=auto \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=package /opt/ensembled /opt/ensembled
COPY --from=example /models /models
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness, since what acts on a failed check restarts the container, and loading would begin anew. http.client, not
# urllib: it ignores proxy variables, which Docker may set in a container. An empty variable is one that is not set.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", "\
from http.client import HTTPConnection; from os import environ; \
server = HTTPConnection('127.0.0.1', int(environ.get('ENSEMBLED_PORT') or 8000), timeout=4); \
server.request('GET', '/v2/health/live'); \
raise SystemExit(server.getresponse().status != 200)"]
ENTRYPOINT ["ensembled"]
# --allow-public, because 0.0.0.0 is needed to be reached from outside the container at all. Who can reach it is decided
# by what is published: `-p 127.0.0.1:8000:8000` is this machine only. Ask for a key in front of it before more.
CMD ["serve", "--models", "/models", "--host", "0.0.0.0", "--allow-public"]
