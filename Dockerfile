# syntax=docker/dockerfile:1
# Two targets from one recipe:
#   docker build --target cpu -t passerby:cpu .
#   docker build --target gpu -t passerby:gpu .     (run with --gpus all; CUDA and TensorRT come as wheels)
# A bundle is not part of the image: mount it at /bundle. The gallery lives in the volume /data.

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN pip install uv==0.13.8 && uv venv /opt/passerby
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./

# Dependencies in a layer of their own: they change less often than the code.
FROM build AS build-cpu
RUN uv pip compile --quiet --no-header --no-annotate --extra server --constraint requirements.lock pyproject.toml -o /tmp/pinned.txt \
    && uv pip install --no-cache --python /opt/passerby -r /tmp/pinned.txt
COPY . .
RUN uv pip install --no-cache --no-deps --python /opt/passerby .

FROM build AS build-gpu
RUN uv pip compile --quiet --no-header --no-annotate --extra server-gpu --constraint requirements.lock pyproject.toml -o /tmp/pinned.txt \
    && uv pip install --no-cache --python /opt/passerby -r /tmp/pinned.txt
COPY . .
RUN uv pip install --no-cache --no-deps --python /opt/passerby .

FROM python:3.12-slim AS runtime
RUN groupadd --system --gid 10001 passerby \
    && useradd --system --uid 10001 --gid passerby --home-dir /data --shell /usr/sbin/nologin passerby \
    && install -d -o passerby -g passerby -m 0700 /data
ENV PATH=/opt/passerby/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["passerby", "health", "--server", "127.0.0.1:50051"]
# Inside a container loopback reaches nobody, so the server listens on all of its interfaces: publish the port only
# where every reader may see the gallery (docker run -p 127.0.0.1:50051:50051).
ENTRYPOINT ["passerby", "serve", "--bundle", "/bundle", "--data", "/data", "--address", "0.0.0.0:50051", "--insecure-listen"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/passerby /opt/passerby

# Last, so that it is what `docker build .` makes.
FROM runtime AS cpu
COPY --from=build-cpu /opt/passerby /opt/passerby
