# One image per trainer, made by scripts/build_image --trainer taxifare [--gpu] [--push]; by hand:
#   docker build --build-arg TRAINER=stackoverflow --tag REGION-docker.pkg.dev/PROJECT/REPOSITORY/stackoverflow .
# With CUDA:                      --build-arg "TENSORFLOW=tensorflow[and-cuda]~=2.21.0"
# On one of Google's prebuilt containers, with the TensorFlow that it brings:
#   --build-arg TENSORFLOW=tensorflow --build-arg BASE_IMAGE=us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest
ARG BASE_IMAGE=python:3.11.11-slim-bookworm

# What is installed: changes less often than the code, and Docker keeps the layer until setup.py changes.
FROM ${BASE_IMAGE} AS dependencies
ARG TENSORFLOW=tensorflow-cpu~=2.21.0
WORKDIR /build
COPY setup.py ./
# The base's own packages stay in sight: a prebuilt container's TensorFlow is used, not installed again.
RUN python3 -m venv --system-site-packages --without-pip /opt/venv
RUN /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check "${TENSORFLOW}" ".[gcs]"

FROM ${BASE_IMAGE}
COPY --from=dependencies /opt/venv /opt/venv
# From here on the layers are a trainer's own.
ARG TRAINER=taxifare
WORKDIR /app
COPY vertex_runtime/ vertex_runtime/
COPY data_tools/ data_tools/
COPY ${TRAINER}/ ${TRAINER}/
ENV PATH=/opt/venv/bin:${PATH} PYTHONPATH=/app/${TRAINER}:/app
ENTRYPOINT ["python", "-m", "trainer.task"]
# Last, so that a new commit costs no layer.
ARG BASE_IMAGE
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title=${TRAINER} \
      org.opencontainers.image.description="Trainer for TensorFlow on Vertex AI custom training" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.base.name=${BASE_IMAGE} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.created=${CREATED}
