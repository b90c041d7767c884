# The project on a machine that has nothing: `docker build -t hierclip .`, then
#   docker run --rm -v hierclip:/hierclip/data hierclip                                    every result, on the CPU
#   docker run --rm hierclip make test
#   docker run --rm --gpus all hierclip .venv/bin/python benchmarks/gpu.py                 what a GPU gives
#   docker run --rm -p 8888:8888 hierclip make lab LAB="--ip 0.0.0.0 --no-browser --allow-root"
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /hierclip
COPY . .
RUN make .venv/ready
CMD ["make", "repro"]
