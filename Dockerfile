# The command in a container, on a CPU:
#
#     docker build -t transduce --build-arg TORCH_INDEX=ADDRESS .
#     docker run --rm -v "$PWD:/work" --user "$(id -u)" transduce fit pairs.tsv --run-dir runs/mine
#
# ADDRESS is that of PyTorch's package index for CPUs, as its installation page gives it. On arm64 it may be left out:
# there the default index has the CPU build.
FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
ARG TORCH_INDEX=""
ARG EXTRAS="plots,zstd"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY constraints.txt /constraints.txt
# torch alone from its own index, all else from the default one: no name can be taken from the wrong place.
RUN if [ -z "$TORCH_INDEX" ] && [ "$(uname -m)" = x86_64 ]; then \
        echo "name PyTorch's index for CPUs: --build-arg TORCH_INDEX=ADDRESS (the default index has the CUDA build)" >&2; \
        exit 1; \
    fi; \
    pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' /constraints.txt)"
COPY --from=build /wheels /wheels
RUN pip install --constraint /constraints.txt "$(ls /wheels/transduce-*.whl)[$EXTRAS]" \
    && python -c "import torch; assert torch.version.cuda is None, 'this is a CUDA build of torch'" \
    && transduce --version
RUN useradd --create-home transduce && install --directory --owner=transduce /work
USER transduce
WORKDIR /work
ENTRYPOINT ["transduce"]
CMD ["--help"]
