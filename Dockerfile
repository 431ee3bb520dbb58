# The service with the shipped bundles. It needs no torch, compiler or shell to run.
FROM python:3.11-slim-bookworm AS build
COPY requirements/service.txt /tmp/service.txt
# An environment without pip: nothing is installed later in the final image.
RUN python -m venv --without-pip /opt/unroll \
    && pip --python /opt/unroll/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-deps --require-hashes -r /tmp/service.txt
COPY service /opt/app/service
# Compile now, since the root file system is read-only when the service runs.
RUN python -m compileall -q /opt/app/service

FROM python:3.11-slim-bookworm
COPY --from=build /opt/unroll /opt/unroll
COPY --from=build /opt/app /opt/app
COPY models /opt/app/models
WORKDIR /opt/app
# The user owns no files, so it needs no name.
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
