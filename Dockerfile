# Framefit in one image. torch's CUDA wheels bring their own runtime, so a slim Python base is enough, with or without GPU.
#
#   docker build -t framefit .                                             pip's choice of torch: CUDA on Linux
#   docker build -t framefit --build-arg TORCH_INDEX_URL=ADDRESS .         another build of torch: CPU, an older CUDA
#
# PyTorch's "Get Started" page lists the addresses. `framefit doctor` reports a driver that is too old for the build.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/framefit
WORKDIR /src
COPY constraints.txt ./
# torch is the largest layer and changes least, so it comes first.
ARG TORCH_INDEX_URL=
RUN /opt/framefit/bin/pip install -c constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml ./
# EXTRAS: optional extras of the package, separated by commas, such as "postgres".
ARG EXTRAS=
RUN EXTRAS="$EXTRAS" python -c "import os, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [name for name in os.environ['EXTRAS'].split(',') if name]; \
print(*project['dependencies'], *(line for name in extras for line in project['optional-dependencies'][name]), sep='\n')" \
    > requirements.txt \
    && /opt/framefit/bin/pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY adaptive adaptive
COPY app app
RUN /opt/framefit/bin/pip install --no-deps . && /opt/framefit/bin/pip check

FROM ${PYTHON_IMAGE}
# tini reaps orphaned processes and forwards signals.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin framefit \
    && mkdir /data /models && chown framefit:framefit /data /models
COPY --from=build /opt/framefit /opt/framefit
ENV PATH=/opt/framefit/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models FRAMEFIT_DATA_DIR=/data \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER framefit
WORKDIR /data
VOLUME ["/data", "/models"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "app.service.healthcheck"]
ENTRYPOINT ["tini", "--", "framefit"]
# Loopback cannot be reached from outside a container, so the published port decides who has access. Without API keys
# the service also requires FRAMEFIT_ALLOW_PUBLIC, which prevents opening it by accident.
ENV FRAMEFIT_HOST=0.0.0.0 FRAMEFIT_PORT=8000
CMD ["serve"]
