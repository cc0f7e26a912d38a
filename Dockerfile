# The gateway in a container.
#
#   docker build -t mec-gateway .
#   docker run --read-only --tmpfs /tmp -v gateway-data:/data -v ./gateway.yaml:/etc/gateway/gateway.yaml:ro \
#     -p 9273:9273 mec-gateway
#
# /data is the only place that is written: say `gateway: {data_dir: /data}` in the file. /health and /metrics are on port
# 9273; a file that sets another `listen:` port needs GATEWAY_LISTEN set to the same, for the health check.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pipelines/ pipelines/
COPY connectors/ connectors/
COPY gateway/ gateway/
COPY firmware_profiles/ firmware_profiles/
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && python -m venv /opt/gateway \
 && /opt/gateway/bin/pip install --no-cache-dir "$(ls /wheels/*.whl)[broker]" \
 && /opt/gateway/bin/pip uninstall --yes pip

FROM python:3.12-slim AS runtime
RUN groupadd --system --gid 10001 gateway \
 && useradd --system --uid 10001 --gid gateway --home-dir /data --no-create-home --shell /usr/sbin/nologin gateway \
 && install --directory --owner=gateway --group=gateway /data /etc/gateway
COPY --from=build /opt/gateway /opt/gateway
# The venv's byte code is compiled when it is installed; nothing is written outside /data.
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_LISTEN=0.0.0.0:9273
USER gateway
WORKDIR /data
VOLUME /data
EXPOSE 9273
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['GATEWAY_LISTEN'].rpartition(':')[2] + '/health', timeout=2)"]
ENTRYPOINT ["gateway", "run"]
CMD ["/etc/gateway/gateway.yaml"]
