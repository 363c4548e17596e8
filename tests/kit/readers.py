"""The tools that read what `config --format` writes, and stand-ins for those that can't be had."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.formats import Values, only_free
from kit.service import wait_for
from kit.tools import tool


def run(*command: str | Path, cwd: Path | None = None, env: Values, **options: Any) -> str:
    """Run a tool with this environment alone; return what it printed, or fail with all of it."""
    env = {"PATH": os.environ["PATH"], **env}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, timeout=60, **options)
    said = f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
    assert done.returncode == 0, said
    printed: str = done.stdout.decode()
    return printed


@contextmanager
def running(*command: str | Path, log: Path, ready: Callable[[], object], env: Values) -> Iterator[None]:
    """Run a server until the end of the block, which begins when it is ready."""
    env = {"PATH": os.environ["PATH"], **env}
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:

        def is_ready() -> bool:
            assert server.poll() is None, log.read_text()
            try:
                ready()
            except (OSError, subprocess.SubprocessError):
                return False
            return True

        wait_for(is_ready, f"{command[0]} is ready", 60)
        yield
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def sourced(file: Path) -> dict[str, str]:
    """Read an env file as `set -a; . FILE` does."""
    told = run("sh", "-c", 'set -a && . "$1" && env -0', "sh", file, env={})
    return dict(line.split("=", 1) for line in told.split("\0") if line.startswith("APP_"))


def direnv(folder: Path) -> tuple[dict[str, str], str]:
    """Enter a folder; return what is in the environment then, and what is printed."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder.parent), "TERM": "dumb"}
    program = tool("direnv")
    subprocess.run([program, "allow"], cwd=folder, env=env, check=True, timeout=60)
    done = subprocess.run([program, "export", "json"], cwd=folder, env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "{}"), done.stderr.decode()


def environment_d(content: str, folder: Path) -> dict[str, str]:
    """Read an env file by systemd's parser, in a tool that expands `$` too, and unsets what is empty."""
    generator = tool("systemd's environment generator")
    (folder / "environment.d").mkdir(exist_ok=True)
    (folder / "environment.d/free.conf").write_text(content)
    printed = run(generator, env={"XDG_CONFIG_HOME": str(folder), "HOME": str(folder)})
    found = {}
    for line in printed.splitlines():
        name, _, value = line.partition("=")
        if value.startswith('"'):
            value = re.sub(r"\\(.)", lambda found: found[1].replace("n", "\n"), value[1:-1])
        found[name] = value
    return only_free(found)


def as_docker_reads(file: Path) -> dict[str, str]:
    lines = file.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def confd(template: str, values: Values) -> str:
    """Render a template with what confd's `exists`, `getv` and `replace` do."""
    definition, end, body = template.partition("{{end}}")
    escapes = re.findall(r'("(?:\\.|[^"\\])*") ("(?:\\.|[^"\\])*") -1', definition)
    assert end
    assert escapes

    def quoted(found: re.Match[str]) -> str:
        value = values[found[1]]
        for old, new in escapes:
            value = value.replace(json.loads(old), json.loads(new))
        return f'"{value}"'

    body = re.sub(
        r'\{\{if exists "([^"]+)"\}\}(.+?)\{\{end\}\}', lambda found: found[2] * (found[1] in values), body
    )
    place = r'\{\{template "quoted" \(getv "([^"]+)"\)\}\}'
    assert "{{" not in re.sub(place, "", body), body
    return re.sub(place, quoted, body)
