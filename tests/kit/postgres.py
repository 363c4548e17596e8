"""A PostgreSQL of a test's own."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.service import free_port, wait_for
from kit.tools import tool


@contextmanager
def postgres(user: str, password: str) -> Iterator[int]:
    """Run a new PostgreSQL for as long as the block lasts, and yield its port on 127.0.0.1."""
    initdb, server, asks = tool("initdb"), tool("postgres"), tool("pg_isready")
    # The server refuses to run as root.
    as_other = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
    prefix = as_other if os.geteuid() == 0 else ()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        (folder / "password").write_text(password)
        if prefix:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        data, port = folder / "data", free_port()
        create = (*prefix, initdb, "--pgdata", data, "--username", user, "--pwfile", folder / "password")
        options = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
        subprocess.run((*create, *options), cwd=folder, check=True, capture_output=True, timeout=120)
        settings = ("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")
        command = (*prefix, server, "-D", data, "-p", str(port), *settings)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stderr=log)
        try:
            ready = (asks, "--host=127.0.0.1", f"--port={port}")
            wait_for(
                lambda: subprocess.run(ready, capture_output=True, timeout=60).returncode == 0, "PostgreSQL"
            )
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    finally:
        shutil.rmtree(folder)
