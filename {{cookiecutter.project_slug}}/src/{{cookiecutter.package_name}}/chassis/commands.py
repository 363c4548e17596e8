"""The service's own commands: one task with the same configuration, secrets, services and logs as the service."""

import asyncio
import importlib.metadata
import os
import signal
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import svcs
import uvloop

from . import logs, secrets
from .config import LoadedConfig
from .lifecycle import Lifecycle, State, exit_now, exit_status
from .run import prepare
from .service import Service

log = logs.get_logger("command")


def run_command(service: Service, name: str, arguments: Namespace, env: Mapping[str, str]) -> int:
    """Run the command *name* of *service* until it ends or a signal cancels it; return the exit status."""
    if (loaded := prepare(service, env)) is None:
        return os.EX_CONFIG
    lifecycle, began = Lifecycle(0, loaded.config.drain.timeout), time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lifecycle.install(runner.get_loop())
        log.info("command started", name=name, version=importlib.metadata.version(service.name))
        try:
            status = runner.get_loop().run_until_complete(_run(service, name, arguments, loaded, lifecycle))
        except asyncio.CancelledError:
            # What a shell reports for a program that this signal ended.
            status = 128 + signal.SIGTERM
        except (Exception, SystemExit) as error:
            status = exit_status(error)
            if isinstance(error, Exception):
                log.critical("command failed", exc_info=error)
        log.info("command ended", name=name, status=status, duration_s=round(time.monotonic() - began, 3))
        if status != 0:
            # A thread that the command left behind must not hold the process.
            exit_now(status)
    return status


async def _run(service: Service, name: str, given: Namespace, loaded: LoadedConfig[Any], lifecycle: Lifecycle) -> int:
    config, task = loaded.config, asyncio.current_task()
    lifecycle.observe(lambda state: task and state is State.DRAINING and task.cancel())
    watch = asyncio.create_task(secrets.watch(loaded.secrets, config.secrets.refresh, lifecycle.hangup, fixed=[]))
    async with svcs.Registry() as registry, svcs.Container(registry) as services:
        registry.register_value(Lifecycle, lifecycle, enter=False)
        service.register(registry, config)
        try:
            return await service.commands[name].run(given, config, services) or 0
        finally:
            watch.cancel()
