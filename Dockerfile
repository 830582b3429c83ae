# docker build -t dnc-serve .                                                              for CPUs
# docker build -t dnc-serve:gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .   for NVIDIA GPUs
# docker run --rm -p 8500:8500 -p 8502:8502 -v dnc-state:/var/lib/dnc dnc-serve
ARG BASE=python:3.11-slim

FROM ${BASE} AS builder
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
# What changes least, first: torch, then the other dependencies, then ourselves.
COPY constraints.txt ./
RUN PIP_EXTRA_INDEX_URL=${TORCH_INDEX} pip install --constraint constraints.txt torch
COPY pyproject.toml ./
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        e = p['optional-dependencies']; n = [*p['dependencies'], *e['model'], *e['serve'], *e['redis'], *e['tracing']]; \
        print(*(d for d in n if not d.startswith('dnc-serve')), sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY package package
COPY proto proto
COPY model model
COPY handler handler
COPY client client
# With machine code for the bundled models, for whichever processor the image will run on.
RUN pip install --no-deps . \
    && python3 -m dnc_serve.model.kernel.warm --into /opt/cache/dnc-serve/kernel --any-processor copy recall graph traversal

FROM ${BASE}
RUN useradd --uid 10001 --create-home --home-dir /home/dnc dnc \
    && install -d -o 10001 -g 10001 /var/lib/dnc
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /opt/cache /opt/cache
# The container's network is the fence, and publishing a port the explicit act; hence an open endpoint inside. With
# DNC_TLS_CERTIFICATE and DNC_TOKENS set, DNC_INSECURE=false makes sure that it never is one.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/opt/cache \
    DNC_HOST=0.0.0.0 \
    DNC_INSECURE=true \
    DNC_STATE_DIR=/var/lib/dnc
USER 10001
WORKDIR /home/dnc
VOLUME /var/lib/dnc
# The streaming endpoint and the metrics; TorchServe's own ports stay on loopback.
EXPOSE 8500 8502
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["dnc", "doctor", "--serving"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["dnc", "serve"]
