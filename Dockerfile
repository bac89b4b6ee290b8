# spantune serve on a CPU. Build: docker build -t spantune .   Run: see docs/docker.md
# For a build that never changes, add the digest of this tag, which `docker buildx imagetools inspect` shows.
FROM python:3.13.7-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/spantune
ENV PATH=/opt/spantune/bin:$PATH
# torch first, without the libraries of CUDA, so that a change of the sources does not download it again
RUN pip install 'torch==2.13.0' --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY recipes recipes
COPY src src
RUN grep -v '^torch==' constraints.txt > versions.txt && pip install -c versions.txt '.[serve,embedded]'

FROM python:3.13.7-slim-bookworm
RUN useradd --create-home --uid 10001 spantune \
    && mkdir -p /runs /corrections /cache/spantune \
    && chown spantune:spantune /corrections /cache /cache/spantune
COPY --from=build /opt/spantune /opt/spantune
ENV PATH=/opt/spantune/bin:$PATH PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/cache
USER 10001
WORKDIR /home/spantune
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=3)"]
ENTRYPOINT ["spantune", "serve"]
CMD ["--help"]
