# syntax=docker/dockerfile:1
# Two images of one farm, with the same Python and the same Ray:
#   docker build --target cpu  --tag clipmill-cpu:0.1.0 .    head, Job, and renderers of models without weights
#   docker build --target cuda --tag clipmill-cuda:0.1.0 .   renderers on NVIDIA cards
# The cpu image has no torch. To emulate cards with diffusion models, build it with
#   --build-arg CPU_EXTRAS=render,deliver,fidelity,postgres,s3,marks --build-arg UV_FIND_LINKS=<where CPU wheels of torch are>

ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir --disable-pip-version-check uv \
    && uv venv /opt/clipmill
ENV VIRTUAL_ENV=/opt/clipmill
WORKDIR /src
# Third parties first: a change of our own code leaves these layers as they are.
COPY pyproject.toml constraints.txt README.md LICENSE ./

FROM build AS build-cpu
ARG CPU_EXTRAS=deliver,fidelity,postgres,s3,marks
ARG UV_FIND_LINKS=
RUN uv pip install --requirements pyproject.toml $(printf ' --extra %s' $(echo "${CPU_EXTRAS}" | tr , ' ')) \
        --constraints constraints.txt
COPY . .
RUN uv pip install --no-deps .

FROM build AS build-cuda
RUN uv pip install --requirements pyproject.toml --extra render --extra fidelity --extra postgres --extra s3 --extra marks \
        --constraints constraints.txt
COPY . .
RUN uv pip install --no-deps .

FROM ${PYTHON_IMAGE} AS runtime
# wget: what KubeRay's probes call in every Ray container.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 clipmill \
    && useradd --uid 10001 --gid 10001 --create-home --shell /bin/bash clipmill \
    && install --directory --owner=clipmill --group=clipmill /var/lib/clipmill
ENV PATH=/opt/clipmill/bin:${PATH} \
    CLIPMILL_HOME=/var/lib/clipmill \
    HF_HOME=/var/lib/clipmill/hub \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_USE_GRPC_BY_DEFAULT=1
WORKDIR /home/clipmill
# By number: Kubernetes cannot see that a name is not root.
USER 10001:10001
CMD ["clipmill", "--help"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/clipmill /opt/clipmill

FROM runtime AS cuda
# `utility` gives NVML, by which a renderer knows its card; which card it sees is the device plugin's to say.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
# `kernels: compiled` builds small C modules on the card's machine: a compiler, and Python's headers, which the slim
# image has where Python itself looks for them.
USER root
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
USER 10001:10001
COPY --from=build-cuda /opt/clipmill /opt/clipmill
