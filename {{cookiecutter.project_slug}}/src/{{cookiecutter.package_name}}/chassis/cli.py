"""The command line: serve, check, config, healthcheck."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import svcs

    from .config import Problem, Settings
    from .middleware import App

# Those of the module formats, whose import would slow down what needs none.
FORMATS = (
    "text",
    "json",
    "json-schema",
    "markdown",
    "dotenv",
    "direnv",
    "envsubst",
    "confd",
    "consul-template",
    "envconsul",
    "kubernetes",
    "swarm",
    "systemd",
)


class Service:
    """The parts that a service gives to the chassis.

    Args:
        name: The name of its distribution and command.
        config: Its configuration class.
        register: Registers what it talks to, with pings, given a registry and the configuration.
        create_app: Makes its ASGI app, given the configuration and the registry.
        informs: The services whose failing ping does not make an instance unready.
    """

    def __init__(
        self,
        name: str,
        config: type[Any],
        register: Callable[[svcs.Registry, Any], None],
        create_app: Callable[[Any, svcs.Registry], App],
        informs: Collection[type] = (),
    ) -> None:
        self.name = name
        self.config: type[Settings] = config
        self.register = register
        self.create_app = create_app
        self.informs = informs


def main(
    name: str,
    load: Callable[[], Service],
    arguments: Sequence[str],
    env: Mapping[str, str],
    load_config: Callable[[], type[Any]] | None = None,
) -> int:
    """Run the command that *arguments* name; return the exit status.

    Args:
        name: The service's name.
        load: Imports the service; called only by the commands that need it, since importing takes time.
        load_config: Imports the configuration class alone, for the commands that need no more.
        arguments: What stands on the command line after the program.
        env: The environment variables.
    """
    if [*arguments] == ["healthcheck"]:
        # An orchestrator asks every few seconds; importing the parser would cost as much again.
        return healthcheck(env)
    # The same goes for a start.
    if [*arguments] in ([], ["serve"]):
        return serve(load, env)
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(prog=name, description=f"Run {name}, or look at how it is configured.")
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    commands.add_parser("serve", help="answer requests until told to stop (what happens without a command)")
    commands.add_parser("check", help="check configuration and secrets, print every problem")
    config = commands.add_parser("config", help="show every setting")
    config.add_argument("--format", choices=FORMATS, default="text", metavar="FORMAT", help=", ".join(FORMATS))
    config.add_argument("--current", action="store_true", help="with the values that are set now, not just defaults")
    config.add_argument("--output", type=Path, metavar="DIR", help="write files there, instead of one to stdout")
    config.add_argument("--force", action="store_true", help="replace files that exist")
    commands.add_parser("healthcheck", help="ask a running instance whether it is ready")
    chosen = parser.parse_args(arguments)
    if chosen.version:
        import importlib.metadata

        print(importlib.metadata.version(name))
        return 0
    load_config = load_config or (lambda: load().config)
    if chosen.command == "config":
        return show(name, load_config(), env, chosen.format, chosen.current, chosen.output, chosen.force)
    return check(load_config(), env)


def serve(load: Callable[[], Service], env: Mapping[str, str]) -> int:
    """Answer requests until told to stop; return the exit status."""
    # PID 1 of a container has no default handlers: without these, a stop in the first moment would go unheard.
    # No exception either: what is being imported might catch it. A reload must not end what has not started.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    # What is imported stays; the collector would look through it again and again.
    gc.disable()
    from . import later

    later.postpone()
    with later.without_mocks():
        from .run import run

    return run(load, env)


def healthcheck(env: Mapping[str, str]) -> int:
    """Ask for readiness on the admin port, by hand and without the configuration classes; 0 when ready, 1 when not."""
    host = env.get("APP_ADMIN_HOST", "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    port = env.get("APP_ADMIN_PORT", "8001")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as answer:
                status = answer.readline().split(b" ")[1]
                body = answer.read().partition(b"\r\n\r\n")[2].decode()
    except (OSError, ValueError, IndexError) as error:
        print(f"no answer from {host}:{port}: {error}", file=sys.stderr)
        return 1
    if status == b"200":
        return 0
    print(body, end="", file=sys.stderr)
    return 1


def check(config: type[Settings], env: Mapping[str, str]) -> int:
    """Print every problem of the configuration; 0 when there is none, else 78 (EX_CONFIG)."""
    from .config import ConfigurationError, load

    problems: list[Problem] = []
    try:
        warnings = load(config, env).warnings
    except ConfigurationError as error:
        problems, warnings = error.problems, error.warnings
    for line in (*problems, *(f"warning: {warning}" for warning in warnings)):
        print(line, file=sys.stderr)
    if problems:
        return os.EX_CONFIG
    print("ok")
    return 0


def show(
    name: str,
    config: type[Settings],
    env: Mapping[str, str],
    format: str,
    current: bool,
    output: Path | None,
    force: bool,
) -> int:
    """Print or write every setting in a format; 0 when done, 1 when it can't be, with nothing written."""
    from .config import describe
    from .formats import FORMATS, Page, RefusedError

    try:
        files = FORMATS[format](Page(name, describe(config, env), current))
    except RefusedError as error:
        return _refuse(*map(str, error.problems))
    if output is None:
        if len(files) > 1:
            return _refuse(f"{format} takes several files ({', '.join(files)}); say where with --output DIR")
        sys.stdout.write(*files.values())
        return 0
    paths = {output / name: content for name, content in files.items()}
    if not force and (there := [path for path in paths if os.path.lexists(path)]):
        return _refuse(*(f"{path} exists; nothing was written (--force replaces it)" for path in there))
    try:
        for path, content in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            print(path)
    except OSError as error:
        return _refuse(f"{error.filename} can't be written: {error.strerror}")
    return 0


def _refuse(*reasons: str) -> int:
    print(*reasons, sep="\n", file=sys.stderr)
    return 1
