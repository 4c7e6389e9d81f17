# Framefit in one image. torch's CUDA wheels bring their own runtime, so a slim Python base is enough, with or without GPU.
#
#   docker build -t framefit .                                             pip's choice of torch: CUDA on Linux
#   docker build -t framefit --build-arg TORCH_INDEX_URL=ADDRESS .         another build of torch: CPU, an older CUDA
#
# With a CPU build of torch the image has about 1.6 GB; with CUDA expect 6 to 10 GB, and keep 20 GB free for the build. A
# build for CUDA 13 needs a driver of version 580 or newer, one for CUDA 12 525 or newer. PyTorch's "Get Started" page lists
# the addresses. docker/check.sh says before the build what would fail, `framefit doctor` in the image says it afterwards.
ARG PYTHON_IMAGE=python:3.11-slim
# sha256:...: builds from exactly this base, whatever the tag means today.
ARG PYTHON_DIGEST=

# The requirements alone, so that other changes of pyproject.toml leave the layer of dependencies as it is.
FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS requirements
COPY pyproject.toml ./
# EXTRAS: optional extras of the package, separated by commas, such as "postgres".
ARG EXTRAS=
RUN EXTRAS="$EXTRAS" python -c "import os, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [name for name in os.environ['EXTRAS'].split(',') if name]; \
print(*project['dependencies'], *(line for name in extras for line in project['optional-dependencies'][name]), sep='\n')" \
    > /requirements.txt

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The app lies beside the environment, in a layer of its own.
RUN python -m venv /opt/framefit \
    && echo /opt/app > "$(/opt/framefit/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/framefit.pth"
COPY constraints.txt ./
# torch is the largest part and changes least, so it comes first.
ARG TORCH_INDEX_URL=
RUN /opt/framefit/bin/pip install -c constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY --from=requirements /requirements.txt ./
RUN /opt/framefit/bin/pip install -c constraints.txt -r requirements.txt

FROM dependencies AS application
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY adaptive adaptive
COPY app app
# The weights of the built-in models are most of the app and hardly change: a layer of their own.
RUN /opt/framefit/bin/pip install --no-deps --no-compile --target /opt/app . && /opt/framefit/bin/pip check \
    && mkdir -p /opt/weights/app/pipelines/builtin /opt/weights/app/pipelines/photo_pan \
    && mv /opt/app/app/pipelines/builtin/model /opt/weights/app/pipelines/builtin/model \
    && mv /opt/app/app/pipelines/photo_pan/model /opt/weights/app/pipelines/photo_pan/model

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}}
# tini reaps orphaned processes and forwards signals. Group 0 may do what the user may: an engine may choose any user id.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --gid 0 --create-home --shell /usr/sbin/nologin framefit \
    && mkdir /data /models && chown 10001 /data /models && chgrp -R 0 /data /models && chmod -R g=u /data /models
COPY --from=dependencies /opt/framefit /opt/framefit
COPY --from=application /opt/weights /opt/app
COPY --from=application /opt/app /opt/app
ENV PATH=/opt/app/bin:/opt/framefit/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    USER=framefit \
    HF_HOME=/models FRAMEFIT_DATA_DIR=/data \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:0
WORKDIR /
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
# Last, so that they change no layer. docker/release.sh sets them.
ARG PYTHON_IMAGE
ARG PYTHON_DIGEST
ARG VERSION=
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="Framefit" \
    org.opencontainers.image.description="An image-to-video server that never loses a video to VRAM." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.created="$CREATED" \
    org.opencontainers.image.base.name="$PYTHON_IMAGE" \
    org.opencontainers.image.base.digest="$PYTHON_DIGEST"
