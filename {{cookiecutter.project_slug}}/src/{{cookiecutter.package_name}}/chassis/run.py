"""From a service's parts and its environment to a running process, and to its exit status."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import svcs
import uvloop

from . import admin, logs
from .config import ConfigurationError, load
from .forwarded import TrustedProxies
from .health import Health
from .metrics import Metrics
from .middleware import Middleware, Traffic
from .notify import Notifier
from .output import ensure_standard_streams
from .server import Server, listen
from .stacks import Watchdog

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from .cli import Service
    from .config import Loaded, Problem, Settings
    from .secrets import Secrets

log = logs.get_logger("service")


def run(load_service: Callable[[], Service], env: Mapping[str, str]) -> int:
    """Serve until a signal asks to stop; return the exit status."""
    ensure_standard_streams()
    logs.configure("info", env.get("APP_LOG_FORMAT", "auto").lower())
    service = load_service()
    # What was imported is none of the collector's business; its first look would be at all of it.
    gc.freeze()
    gc.enable()
    try:
        loaded = load(service.config, env)
    except ConfigurationError as error:
        for problem in error.problems:
            log.critical("configuration problem", setting=problem.setting, problem=problem.problem)
        _warn(error.warnings)
        return os.EX_CONFIG
    config = loaded.config
    logs.configure(config.log.level, config.log.format)
    _warn(loaded.warnings)
    sockets: list[socket.socket] = []
    for purpose, at in (("http", config.http), ("admin", config.admin)):
        try:
            sockets.append(listen(at.host, at.port))
        except OSError as error:
            setting = f"APP_{purpose.upper()}_PORT"
            log.critical("can't listen", setting=setting, host=at.host, port=at.port, error=str(error))
            return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_serve(service, loaded, Notifier(env), *sockets))
        log.info("stopped", status=status)
        logs.output().flush(logs.EXIT_PATIENCE)
        if status != 0:
            # What did not end in time does not get more of it: the runner would wait for the last task and thread.
            os._exit(status)
    # The interpreter takes its handlers away before it ends.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # At exit the interpreter collects garbage, which takes longer than all of the stop; there is none that matters.
    gc.freeze()
    return status


def _warn(warnings: list[Problem]) -> None:
    for warning in warnings:
        log.warning("unknown variable", setting=warning.setting, problem=warning.problem)


async def _serve(
    service: Service, loaded: Loaded[Settings], notifier: Notifier, http: socket.socket, operations: socket.socket
) -> int:
    config = loaded.config
    version = _version(service.name)
    health = Health(config.health.check_timeout, config.health.stall_limit, service.informs)
    health.on_state = notifier.state
    traffic = Traffic()
    build = {"name": service.name, "version": version, "revision": config.build.revision or ""}
    metrics = Metrics(build, lambda: len(traffic.in_flight), lambda: logs.output().lost)
    asyncio.get_running_loop().set_exception_handler(_counted(metrics))
    watchdog = Watchdog(health, lambda: traffic.running(health.loop))
    beat = asyncio.create_task(health.heartbeat(metrics.lag.observe, watchdog.beat, notifier.beat))
    admin.serve(
        operations,
        admin.Admin(service.name, version, config, loaded.entries, loaded.secrets, health, metrics, traffic, watchdog),
    )
    log.info(
        "listening",
        name=service.name,
        version=version,
        http=_address(http),
        admin=_address(operations),
        python=platform.python_version(),
        pid=os.getpid(),
    )
    registry = svcs.Registry()
    service.register(registry, config)
    health.watch(registry)
    app = service.create_app(config, registry)
    proxies = TrustedProxies(config.http.trusted_proxies)
    middleware = Middleware(app, health, metrics, traffic, proxies, config.http.max_body)
    reload = asyncio.Event()
    fixed = [entry.setting.name for entry in loaded.entries if entry.source.startswith("environment")]
    watcher = asyncio.create_task(_watch_secrets(loaded.secrets, config.secrets.refresh, reload, fixed))
    try:
        return await Server(config, middleware, health, http, reload.set).run()
    finally:
        watcher.cancel()
        beat.cancel()
        watchdog.stop()
        await registry.aclose()


def _version(name: str) -> str:
    """Return the version of an installed distribution, by the name of the folder that its metadata is in.

    importlib.metadata would read it there, but imports what reads archives and resources: a fortieth of the start.
    """
    start, end = f"{name.replace('-', '_')}-", ".dist-info"
    for folder in filter(Path.is_dir, map(Path, sys.path)):
        for entry in folder.iterdir():
            if entry.name.startswith(start) and entry.name.endswith(end):
                return entry.name.removeprefix(start).removesuffix(end)
    import importlib.metadata

    return importlib.metadata.version(name)


def _counted(metrics: Metrics) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return what the event loop tells of exceptions that nobody catches: it counts them, and has them logged."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        metrics.uncaught.inc()
        loop.default_exception_handler(context)

    return handle


async def _watch_secrets(secrets: Secrets, every: float, now: asyncio.Event, fixed: list[str]) -> None:
    """Take over changed secrets every *every* seconds and whenever *now* is set; say then that *fixed* stays."""
    reported: dict[str, str] = {}
    while True:
        asked = True
        try:
            async with asyncio.timeout(every or None):
                await now.wait()
            now.clear()
        except TimeoutError:
            asked = False
        if asked and fixed:
            # What sent the signal may have changed the file that these are from, and no process can see that of itself.
            log.info("settings are from the start; a change of these needs a restart", settings=fixed)
        changed, problems = await asyncio.to_thread(secrets.reload)
        if changed:
            log.info("secrets reloaded", secrets=secrets.names)
        elif problems and (asked or problems != reported):
            log.error("secrets not reloaded; the old ones stay in use", problems=problems)
        elif asked:
            log.info("secrets are unchanged")
        reported = problems


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
