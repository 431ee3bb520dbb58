# The training package, to run on a folder mounted at /work.
FROM python:3.11-slim-bookworm
# An additional package index for torch, such as one with CPU-only builds, a third of the size.
ARG TORCH_INDEX
COPY requirements pyproject.toml /tmp/build/
# torch first, pinned by version only, as in the Makefile: its wheel differs by index.
RUN python -m venv /opt/unroll \
    && /opt/unroll/bin/pip install --no-cache-dir --disable-pip-version-check \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        "$(sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' /tmp/build/pyproject.toml)" \
    && /opt/unroll/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps \
        -r /tmp/build/development.txt
COPY service /opt/app/service
COPY training /opt/app/training
RUN /opt/unroll/bin/python -m compileall -q /opt/app
ENV PATH=/opt/unroll/bin:$PATH \
    PYTHONPATH=/opt/app \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=passive \
    ORT_DISABLE_TELEMETRY=1 \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
USER 1000:1000
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "training"]
