# One image for the operator and the gateways: `promptrollout operator` or `promptrollout gateway`.
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements/ requirements/
# the build backend is in the development lock; every download's hash is checked
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/dev.txt
RUN python -m venv /opt/promptrollout \
 && /opt/promptrollout/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY src/ src/
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/promptrollout/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl

FROM python:3.13-slim
LABEL org.opencontainers.image.title="promptrollout" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/promptrollout /opt/promptrollout
ENV PATH=/opt/promptrollout/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
# serving and admin port of a gateway; the operator has the second one only
EXPOSE 8080 9090
ENTRYPOINT ["promptrollout"]
