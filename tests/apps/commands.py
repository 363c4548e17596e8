"""The probe with commands of its own, for the tests of the chassis."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from typing import NoReturn

import attrs
import svcs
from my_service.chassis import Command, Lifecycle, Service, get_logger, run

from apps import probe

log = get_logger("commands")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--since", type=int, default=0, help="where to begin")
    # The chassis has names of its own for what it parses.
    parser.add_argument("--command", default="serve", help="what another program is to do")


async def reindex(arguments: Namespace, config: probe.Config, services: svcs.Container) -> int:
    gate = await services.aget(probe.Gate)
    password = config.probe.password.reveal()
    log.info(
        "reindexed", since=arguments.since, gate=gate.mode, name=config.probe.name, password=len(password)
    )
    return 3 if arguments.since < 0 else 0


async def fail(arguments: Namespace, config: probe.Config, services: svcs.Container) -> NoReturn:
    raise RuntimeError("no such index")


async def abandon(arguments: Namespace, config: probe.Config, services: svcs.Container) -> None:
    """Wait for what a library cancels."""
    answer = asyncio.get_running_loop().create_future()
    answer.get_loop().call_soon(answer.cancel)
    await answer


async def leave(arguments: Namespace, config: probe.Config, services: svcs.Container) -> NoReturn:
    sys.exit(5)


async def leave_early(arguments: Namespace, config: probe.Config, services: svcs.Container) -> None:
    """Let a callback find that there is nothing to do."""
    asyncio.get_running_loop().call_soon(sys.exit, 0)
    await asyncio.sleep(600)


async def linger(arguments: Namespace, config: probe.Config, services: svcs.Container) -> None:
    """Work until it is cancelled, and clean up for as long as it is told."""
    lifecycle = await services.aget(Lifecycle)
    log.info("working", state=lifecycle.state)
    # A thread that a library leaves behind.
    threading.Thread(target=time.sleep, args=(600,)).start()
    try:
        await asyncio.sleep(600)
    finally:
        log.info("cleaning up")
        await asyncio.sleep(arguments.since)
        log.info("cleaned up")


async def give_up(arguments: Namespace, config: probe.Config, services: svcs.Container) -> None:
    """Take a cancellation for a reason to return."""
    log.info("working")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(600)


async def rotate(arguments: Namespace, config: probe.Config, services: svcs.Container) -> None:
    """Say that the password was refused until there is another one."""
    log.info("refused")
    while not await config.probe.password.refused():
        await asyncio.sleep(0.05)
    log.info("another", password=config.probe.password.reveal() == "hunter3")


def service() -> Service:
    commands = {
        "reindex": Command(reindex, "index 100% of it", add_arguments),
        "fail": Command(fail, "fail"),
        "abandon": Command(abandon, "wait for what is cancelled"),
        "leave": Command(leave, "leave by sys.exit"),
        "leave-early": Command(leave_early, "leave by sys.exit in a callback"),
        "linger": Command(linger, "work for long", add_arguments),
        "give-up": Command(give_up, "return when it is cancelled"),
        "rotate": Command(rotate, "wait for another password"),
    }
    return attrs.evolve(probe.service(), commands=commands)


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
