# The service with the shipped bundles: no torch, no compiler, no shell needed to run.
FROM python:3.11-slim-bookworm AS build
COPY requirements/service.txt /tmp/service.txt
# An environment without pip, since nothing is installed in the image that runs.
RUN python -m venv --without-pip /opt/unroll \
    && pip --python /opt/unroll/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-deps --require-hashes -r /tmp/service.txt
COPY service /opt/app/service
# The root is read-only when it runs, so what Python would write then is written now.
RUN python -m compileall -q /opt/app/service

FROM python:3.11-slim-bookworm
COPY --from=build /opt/unroll /opt/unroll
COPY --from=build /opt/app /opt/app
COPY models /opt/app/models
WORKDIR /opt/app
# No name is needed for a user that owns nothing.
USER 10001:10001
ENV PATH=/opt/unroll/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    UNROLL_HOST=0.0.0.0 \
    UNROLL_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-m", "service.health"]
ENTRYPOINT ["python", "-m", "service"]
