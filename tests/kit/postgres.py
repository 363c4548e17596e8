"""A PostgreSQL of this machine that tests may stop, freeze and start again."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.service import LOOPBACK, clean_environment, free_ports, wait_for
from kit.tools import tool

START_SECONDS = 60
# The service logs in with a password; the tests, as another role, without one.
ACCESS = f"host all tests {LOOPBACK}/32 trust\nhost all all {LOOPBACK}/32 scram-sha-256\n"
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "fsync": "off",
    "max_connections": 100,
}


class Postgres:
    """One server, with the role app."""

    def __init__(self) -> None:
        self._programs = tool("postgres").resolve().parent
        self.port = free_ports(1)[0]
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self._run("initdb", "--username=tests", "--encoding=UTF8", "--no-locale", "--no-sync", "data")
        (self.folder / "data" / "pg_hba.conf").write_text(ACCESS)
        self.start()
        self.sql("create role app login createdb")
        self.password("first")

    def _run(self, program: str, *arguments: str) -> None:
        command: tuple[str | Path, ...] = (self._programs / program, *arguments)
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, **self._as)

    def start(self) -> None:
        settings = [f"--{name}={value}" for name, value in (SETTINGS | {"port": self.port}).items()]
        command: tuple[str | Path, ...] = (self._programs / "postgres", "-D", "data", *settings)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self._as)
        wait_for(lambda: self._sql("select 1").returncode == 0, "PostgreSQL", START_SECONDS, every=0.05)

    def stop(self) -> None:
        """Stop it as an operator does who waits for nobody."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_SECONDS)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it stand still: connections stay open, and nobody answers."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        pids = [self._process.pid, *map(int, children)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        if self._process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def psql(self, database: str) -> tuple[str | Path, ...]:
        """Return the command that takes SQL from stdin, as a role that may do everything."""
        at = (f"--host={LOOPBACK}", f"--port={self.port}", "--username=tests", f"--dbname={database}")
        options = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        return self._programs / "psql", *at, *options

    def _sql(self, statement: str, database: str = "postgres") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.psql(database),
            input=statement,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def sql(self, statement: str, database: str = "postgres") -> list[str]:
        """Run SQL; return the lines of what it gives."""
        done = self._sql(statement, database)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    def password(self, password: str) -> None:
        """Give the role of the service another password."""
        self.sql(f"alter role app password '{password}'")

    def database(self, name: str) -> str:
        """Make a database that belongs to the role of the service."""
        self.sql(f"create database {name} owner app")
        return name

    @contextlib.contextmanager
    def locked(self, table: str, database: str, mode: str) -> Iterator[None]:
        """Hold a lock on a table."""
        with subprocess.Popen(
            self.psql(database), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as psql:
            assert psql.stdin is not None
            assert psql.stdout is not None
            psql.stdin.write(f"begin; lock table {table} in {mode} mode; select 'locked';\n")
            psql.stdin.flush()
            assert psql.stdout.readline() == "locked\n"
            yield
            psql.stdin.close()


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a server for as long as the block lasts."""
    server = Postgres()
    try:
        yield server
    finally:
        server.end()
