# One image per trainer: docker build --build-arg TRAINER=stackoverflow --tag REGION-docker.pkg.dev/PROJECT/REPO/stackoverflow .
# A prebuilt container works as the base, too: --build-arg BASE_IMAGE=us-docker.pkg.dev/vertex-ai/training/tf-gpu.2-17.py310:latest
ARG BASE_IMAGE=python:3.11.11-slim-bookworm
FROM ${BASE_IMAGE}
ARG TRAINER=taxifare
WORKDIR /app
# Dependencies first: they change less often than the code, and Docker keeps the layer.
COPY setup.py ./
RUN python -m pip install --no-cache-dir ".[tf]"
COPY vertex_runtime/ vertex_runtime/
COPY taxifare/ taxifare/
COPY stackoverflow/ stackoverflow/
ENV PYTHONPATH=/app/${TRAINER}:/app
ENTRYPOINT ["python", "-m", "trainer.task"]
