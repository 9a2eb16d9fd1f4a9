# The command line in a container: models inside, not root, and a root file system that may be read-only.
#
#   docker build --tag diffusion-anomaly .
#   docker build --tag diffusion-anomaly:cuda --build-arg COMPUTE=cu126 .
#   docker run --rm --read-only --tmpfs /tmp --volume "$PWD:/data" --user "$(id -u):$(id -g)" \
#     diffusion-anomaly detect flair.nii.gz --output results
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
# Of PyTorch's builds: cpu, or one with CUDA such as cu126.
ARG COMPUTE=cpu
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python -m venv /opt/diffusion-anomaly
ENV PATH="/opt/diffusion-anomaly/bin:${PATH}"
# Torch goes first and alone, so that its index serves nothing but torch and what torch asks for.
RUN pip install --no-cache-dir --constraint constraints.txt \
    --extra-index-url "https://download.pytorch.org/whl/${COMPUTE}" torch
COPY DiffusionAnomaly/diffusion_anomaly DiffusionAnomaly/diffusion_anomaly
RUN pip install --no-cache-dir --constraint constraints.txt '.[cohort,dicom,dicom-node,client,serve]'

FROM python:${PYTHON}-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp anomaly \
    && install --directory --owner=anomaly --group=anomaly --mode=0700 /data
COPY --from=build /opt/diffusion-anomaly /opt/diffusion-anomaly
ENV PATH="/opt/diffusion-anomaly/bin:${PATH}" \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONUTF8=1
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["diffusion-anomaly"]
CMD ["--help"]
