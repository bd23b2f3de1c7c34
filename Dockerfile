# docker build -t pyrovae . && docker run --rm --user "$(id -u)" -v "$PWD:/data" pyrovae
# fits the handwritten digits, and leaves the run in ./runs. Another command takes the place of this demo:
# docker run --rm --user "$(id -u)" -v "$PWD:/data" pyrovae fit table.csv
FROM python:3.12-slim

# The compiled engine needs a C++ compiler, and the picture of a graph Graphviz.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ graphviz \
    && rm -rf /var/lib/apt/lists/*

# Arguments of pip, such as those that find PyTorch's wheels without CUDA, which are several gigabytes smaller.
ARG PIP_ARGS=""
COPY pyproject.toml setup.cfg README.md LICENSE /src/
COPY pyrovae /src/pyrovae
RUN pip install --no-cache-dir ${PIP_ARGS} "/src[page,vq,arrow,hub]" && rm -rf /src

# Not as root. Whoever the user is has a name and a home, in which compiled code and the list of known data are kept.
RUN mkdir --parents /home/pyrovae /data && chmod 1777 /home/pyrovae /data
ENV HOME=/home/pyrovae USER=pyrovae
USER 1000
WORKDIR /data
ENTRYPOINT ["pyrovae"]
CMD ["fit", "digits"]
