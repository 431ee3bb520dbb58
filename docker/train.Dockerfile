# The training package, to run on a folder that is mounted at /work.
FROM python:3.11-slim-bookworm
# Another index to look for torch on, as one of builds for processors alone: a third of the size.
ARG TORCH_INDEX
COPY requirements pyproject.toml /tmp/build/
# torch first and by its version alone, as in the Makefile: the plain name can be another wheel.
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
