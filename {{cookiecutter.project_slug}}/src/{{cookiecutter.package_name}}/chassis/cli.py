"""The command line: serve, worker, check, config, and the service's own commands."""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .config import describe, load
from .config.formats import FORMATS, SettingsDocument
from .errors import ConfigurationError, Problem
from .run import run_command, serve
from .service import Service


def run(service: Service, arguments: Sequence[str], env: Mapping[str, str]) -> int:
    """Run the command that *arguments* name, for *service* in the environment *env*; return the exit status."""
    name = service.name
    parser = argparse.ArgumentParser(prog=name, description=f"Run {name}, or look at how it is configured.")
    parser.add_argument("--version", action="version", version=importlib.metadata.version(name))
    commands = parser.add_subparsers(dest="chassis_command", title="commands", metavar="COMMAND")
    commands.add_parser("serve", help="answer requests until a signal asks to stop (the default)")
    if service.workers:
        commands.add_parser("worker", help="run a worker alone").add_argument("name", choices=service.workers)
    commands.add_parser("check", help="check configuration and secrets, and print every problem")
    config = commands.add_parser("config", help="show every setting")
    config.add_argument("--format", choices=FORMATS, default="text", metavar="FORMAT", help=", ".join(FORMATS))
    config.add_argument("--current", action="store_true", help="with the values that are set now, not just defaults")
    config.add_argument("--output", type=Path, metavar="DIR", help="write files there, instead of one to stdout")
    config.add_argument("--force", action="store_true", help="replace files that exist")
    commands.add_parser("healthcheck", help="ask a running instance whether it is ready")
    for own, command in service.commands.items():  # argparse takes a % for one of its own.
        command.add_arguments(commands.add_parser(own, help=command.help.replace("%", "%%"), description=command.help))
    chosen = parser.parse_args(arguments)
    if chosen.chassis_command == "check":
        return check(service, env)
    if chosen.chassis_command == "config":
        return show(service, env, chosen.format, chosen.current, chosen.output, chosen.force)
    if chosen.chassis_command in service.commands:
        return run_command(service, chosen.chassis_command, chosen, env)
    return serve(service, env, chosen.name if chosen.chassis_command == "worker" else "")


def check(service: Service, env: Mapping[str, str]) -> int:
    """Print every problem of the configuration; return 0 if there is none, otherwise 78 (EX_CONFIG)."""
    problems: list[Problem] = []
    try:
        warnings = load(service.config, env).warnings
    except ConfigurationError as error:
        problems, warnings = error.problems, error.warnings
    for line in (*problems, *(f"warning: {warning}" for warning in warnings)):
        print(line, file=sys.stderr)
    if problems:
        return os.EX_CONFIG
    return _print("ok\n")


def show(service: Service, env: Mapping[str, str], format: str, current: bool, output: Path | None, force: bool) -> int:
    """Print or write every setting in a format; return 0 when done, 1 if it can't be, with nothing written."""
    try:
        files = FORMATS[format](SettingsDocument(service.name, describe(service.config, env), current))
    except ConfigurationError as error:
        return _refuse(*map(str, error.problems))
    if output is None:
        if len(files) > 1:
            return _refuse(f"{format} takes several files ({', '.join(files)}); say where with --output DIR")
        return _print(*files.values())
    paths = {output / name: content for name, content in files.items()}
    if not force and (existing := [path for path in paths if os.path.lexists(path)]):
        return _refuse(*(f"{path} exists; nothing was written (--force replaces it)" for path in existing))
    try:
        for path, content in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            print(path)
    except OSError as error:
        return _refuse(f"{error.filename} can't be written: {error.strerror}")
    return 0


def _print(text: str) -> int:
    try:
        print(text, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # At its end Python writes once more what is left.
        return _refuse(f"standard output can't be written: {error.strerror}")
    return 0


def _refuse(*reasons: str) -> int:
    print(*reasons, sep="\n", file=sys.stderr)
    return 1
