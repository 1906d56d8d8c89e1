# Stands in for rust:1-slim-bookworm: the toolchain of the machine that runs the test, which is beside this file.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY bin /usr/local/bin
COPY lib /usr/local/lib
RUN ldconfig
