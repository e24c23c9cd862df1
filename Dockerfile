# One image for web, worker, migrate and apply: the command says which. docs/operations.md tells how they go together.
FROM python:3.13.9-slim-bookworm AS build
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/qasid
WORKDIR /src
# The lock file first: a change of the code does not install the dependencies anew.
COPY pyproject.toml uv.lock README.md ./
RUN uv sync --locked --no-dev --no-install-project --no-editable
COPY app app
COPY workers workers
COPY migrations migrations
RUN uv sync --locked --no-dev --no-editable

FROM python:3.13.9-slim-bookworm
RUN groupadd --system --gid 10001 qasid && useradd --system --uid 10001 --gid qasid --no-create-home qasid \
    && install -d -o qasid -g qasid /var/lib/qasid /var/spool/qasid
COPY --from=build /opt/qasid /opt/qasid
ENV PATH=/opt/qasid/bin:$PATH PYTHONUNBUFFERED=1 QASID_HOST=0.0.0.0 QASID_STATE_DIR=/var/lib/qasid QASID_LOG_FORMAT=json
USER qasid
WORKDIR /var/lib/qasid
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('QASID_PORT', '8000') + '/livez', timeout=2)"]
CMD ["qasid", "web"]
