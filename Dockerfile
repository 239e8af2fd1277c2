# One image for the operator and the gateways: `promptrollout operator` or `promptrollout gateway`.
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements/build.txt requirements/runtime.txt requirements/
# every download's hash is checked
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/build.txt
# What runs needs no pip. What nothing of ours needs stays out (tests/unit/chart/test_image.py holds that nothing does):
# the generated classes of Kubernetes' client (72 MB), pygments, which rich loads to print source code, and C sources.
RUN python -m venv --without-pip /opt/promptrollout \
 && pip --python /opt/promptrollout/bin/python install --no-cache-dir --disable-pip-version-check --no-compile \
      --require-hashes -r requirements/runtime.txt \
 && cd /opt/promptrollout/lib/python3.13/site-packages \
 && find kubernetes/client kubernetes/aio/client \( -path '*/api/*_api.py' -o -path '*/models/*_*.py' \) -delete \
 && find . \( -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' \) -delete \
 && find . -type d \( -name tests -o -name test -o -name pygments -o -name sboms \) -prune -exec rm -r {} +
COPY pyproject.toml README.md LICENSE ./
COPY src/ src/
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && pip --python /opt/promptrollout/bin/python install --no-cache-dir --no-compile --no-deps --no-index /wheels/*.whl

FROM python:3.13-slim
LABEL org.opencontainers.image.title="promptrollout" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/promptrollout /opt/promptrollout
ENV PATH=/opt/promptrollout/bin:$PATH \
    PYTHONUNBUFFERED=1
# Bytecode of what a start loads, and of nothing else: pods cannot write it, and would compile all of it at each start.
RUN python -c 'import promptrollout.cli.operator, promptrollout.cli.gateway'
ENV PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
# serving and admin port of a gateway; the operator has the second one only
EXPOSE 8080 9090
ENTRYPOINT ["promptrollout"]
