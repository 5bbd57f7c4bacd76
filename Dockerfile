# A node in a container: docker build -t exo . && docker run --network host -v exo:/var/lib/exo exo
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY exo exo
RUN python -m venv /opt/exo \
 && /opt/exo/bin/pip install --no-cache-dir -c requirements.lock .

FROM python:3.12-slim-bookworm
COPY --from=build /opt/exo /opt/exo
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/exo exo
ENV PATH=/opt/exo/bin:$PATH EXO_HOME=/var/lib/exo
USER 10001
VOLUME /var/lib/exo
EXPOSE 52415/tcp 5678/udp
HEALTHCHECK --interval=30s --start-period=30s CMD ["exo", "status"]
ENTRYPOINT ["exo"]
CMD ["--disable-tui"]
