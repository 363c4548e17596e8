"""A service with workers: a file in the folder WORK is an item, and its name says what becomes of it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import svcs
from my_service.chassis import Service, Settings, Worker, get_logger, run
from starlette.applications import Starlette

from apps.managers import NOTIFY

log = get_logger("working")


class Eater(Worker):
    """Eats the files of a folder, alone."""

    stall_limit_s = 2.0
    folder = Path(os.environ["WORK"])

    async def run(self) -> None:
        while not self.lifecycle.draining.is_set():
            if not (names := sorted(path.name for path in self.folder.iterdir())):
                await self.rest(0.02)
            for name in names[:1]:
                with self.item():
                    await self.eat(name)
        log.info("ate all it could")

    async def eat(self, name: str) -> None:
        kind = name.partition("-")[2]
        if kind == "poison":
            (self.folder / name).unlink()
            raise RuntimeError("this was poison")
        if kind == "abandoned":
            (self.folder / name).unlink()
            answer = asyncio.get_running_loop().create_future()
            answer.cancel()
            await answer
        if kind == "bone":
            await asyncio.Event().wait()
        if kind == "slow":
            log.info("eats slowly")
            await asyncio.sleep(1)
        if kind == "nap":
            await self.rest(3)
        (self.folder / name).unlink()
        log.info("ate", name=name)


class Guest(Eater):
    """The same, beside the requests."""

    beside_requests = True


class Ticker(Worker):
    """Has work all the time, beside the requests."""

    beside_requests = True

    async def run(self) -> None:
        while not self.lifecycle.draining.is_set():
            with self.item():
                await self.rest(0.2)


class Snack(Worker):
    """Ends by itself."""

    beside_requests = True

    async def run(self) -> None:
        log.info("ate a snack")


def service() -> Service:
    workers: dict[str, type[Worker]] = {"eater": Eater, "guest": Guest, "snack": Snack, "ticker": Ticker}
    non_critical = [Guest] if "FORGIVING" in os.environ else []
    return Service("my-service", Settings, register, create_app, non_critical, workers=workers, notify=NOTIFY)


def register(registry: svcs.Registry, config: Settings) -> None: ...


def create_app(config: Settings, registry: svcs.Registry) -> Starlette:
    if "BROKEN" in os.environ:
        raise RuntimeError("no such template")
    return Starlette()


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
