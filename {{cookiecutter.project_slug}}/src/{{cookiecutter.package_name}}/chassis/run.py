"""From a service's parts and its environment to a running process, and to its exit status."""

import asyncio
import contextlib
import errno
import importlib.metadata
import importlib.util
import os
import platform
import socket
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import svcs
import uvloop

from . import logs, secrets, standard_logging
from .admin.endpoints import Admin
from .admin.page import History
from .admin.server import serve as serve_admin
from .config import LoadedConfig, load
from .errors import ConfigurationError, Problem, use_problems
from .event_loop import EventLoop, Watchdog
from .health import Health
from .http.middleware import Middleware
from .http.requests import RequestsInFlight, websocket_paths
from .http.server import Server, listen
from .lifecycle import Lifecycle, State, exit_now, exit_status
from .metrics import Metrics
from .output import ensure_standard_streams
from .service import Service

Sockets = list[socket.socket]
log = logs.get_logger("service")


def serve(service: Service, env: Mapping[str, str], worker: str = "") -> int:
    """Serve, or run *worker* alone, until a signal asks to stop; return the exit status."""
    loaded = _prepare(service, env)
    config = loaded.config
    listeners: list[Sockets] = []
    for purpose, at in (("HTTP", config.http), ("ADMIN", config.admin)):
        try:
            listeners.append([] if worker and at is config.http else listen(at.host, at.port))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            setting = f"APP_{purpose}_{'PORT' if in_use or error.errno == errno.EACCES else 'HOST'}"
            log.critical("listen failed", setting=setting, host=at.host, port=at.port, error=str(error))
            return 1 if in_use else os.EX_CONFIG
    lifecycle = Lifecycle(config.drain.delay, config.drain.timeout)
    lifecycle.keep_from_children(lambda: [sock for sockets in listeners for sock in sockets])
    return _run_to_end(lifecycle, _serve(service, loaded, lifecycle, env, worker, *listeners), "stopped")


def run_command(service: Service, name: str, arguments: Namespace, env: Mapping[str, str]) -> int:
    """Run the command *name* of *service* until it ends or a signal cancels it; return the exit status."""
    loaded = _prepare(service, env)
    lifecycle = Lifecycle(timeout_s=loaded.config.drain.timeout)

    async def main() -> None:
        async with _services(loaded, lifecycle, "command failed") as registry, svcs.Container(registry) as services:
            service.register(registry, loaded.config)
            lifecycle.exit_with(await service.commands[name].run(arguments, loaded.config, services) or 0)
        lifecycle.exit_with(lifecycle.signal_status)

    log.info("command started", name=name, version=importlib.metadata.version(service.name))
    return _run_to_end(lifecycle, main(), "command ended", name=name)


def _prepare(service: Service, env: Mapping[str, str]) -> LoadedConfig[Any]:
    """Load the configuration and begin to log as it says; exit, with all problems logged, if it is wrong."""
    ensure_standard_streams()
    logs.configure("info", env.get("APP_LOG_FORMAT", "auto").lower())
    try:
        loaded = load(service.config, env)
    except ConfigurationError as error:
        _log_problems(error.problems, error.warnings)
        raise SystemExit(os.EX_CONFIG) from None
    logs.configure(loaded.config.log.level, loaded.config.log.format, loaded.config.log.levels)
    _log_problems([], loaded.warnings)
    return loaded


def _log_problems(problems: list[Problem], warnings: list[Problem]) -> None:
    for problem in problems:
        log.critical("configuration problem", setting=problem.setting, problem=problem.problem)
    for warning in warnings:
        log.warning("configuration warning", setting=warning.setting, problem=warning.problem)


def _run_to_end(lifecycle: Lifecycle, main: Coroutine[Any, Any, None], ended: str, **about: str) -> int:
    """Run *main*, and drain when a task or a callback calls `sys.exit` or `loop.stop`, which ends the loop at once."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)
        lifecycle.install(task)
        while not task.done():
            try:
                loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
                if isinstance(error, RuntimeError) and task.done():
                    raise  # It is *main* that has failed.
                log.critical("exit requested", status=exit_status(error), exc_info=error)
                lifecycle.exit_with(exit_status(error))
                if not task.done():
                    loop.call_soon(lifecycle.stop, "exit requested")
        lifecycle.advance(State.STOPPED)
        if lifecycle.status != 0:
            # What did not end in time gets no more of it: the runner would wait for the last task and thread.
            log.info(ended, **about, status=lifecycle.status)
            exit_now(lifecycle.status)
    log.info(ended, **about, status=0)
    return 0


@contextlib.asynccontextmanager
async def _services(loaded: LoadedConfig[Any], lifecycle: Lifecycle, failed: str) -> AsyncIterator[svcs.Registry]:
    """Hold what a service talks to, with fresh secrets; close it in time, also after a failure, logged as *failed*."""
    fixed = [value.variable for value in loaded.values if value.variable is not None]
    watch = asyncio.create_task(secrets.watch(loaded.secrets, loaded.config.secrets.refresh, lifecycle.hangup, fixed))
    registry = svcs.Registry()
    registry.register_value(Lifecycle, lifecycle, enter=False)
    try:
        yield registry
    except BaseException as error:
        lifecycle.set_deadline()
        if not isinstance(error, Exception | asyncio.CancelledError):
            raise  # Somebody wants to exit.
        # What a signal has called off has not failed.
        if isinstance(error, Exception) or not lifecycle.draining.is_set():
            log.critical(failed, exc_info=error)
            lifecycle.exit_with(1)
    finally:
        lifecycle.advance(State.DRAINING)  # What closes is not called off any more.
        try:
            async with asyncio.timeout(lifecycle.time_left_s):
                await registry.aclose()
        except TimeoutError:
            log.error("closing timed out", hint="a service that was registered with on_registry_close did not close")
            lifecycle.exit_with(1)
        watch.cancel()


async def _serve(
    service: Service, loaded: LoadedConfig[Any], lifecycle: Lifecycle, env: Mapping[str, str], worker: str, *at: Sockets
) -> None:
    config, version = loaded.config, importlib.metadata.version(service.name)
    http, operations = at
    event_loop, requests = EventLoop(), RequestsInFlight()
    tracing = service.tracing(service.name, version, env) if service.tracing is not None else None
    lifecycle.requests = lambda: len(requests)
    build = {"name": service.name, "version": version, "revision": config.build.revision or ""}
    metrics = Metrics(build, lambda: len(requests), lambda: logs.output.lost)
    health = Health(lifecycle, event_loop, config.health.check_timeout, service.non_critical, loaded.secrets.redact)
    health.on_check = lambda check: metrics.readiness_check.labels(check.name).set(check.error is None)
    metrics.follow(lifecycle, health, loaded.secrets)
    watchdog = Watchdog(event_loop, config.health.stall_limit, lambda: requests.running(event_loop.loop))
    history = History(metrics, lifecycle, health)
    standard_logging.LEVELS.note = history.note
    asyncio.get_running_loop().set_exception_handler(metrics.count_uncaught)
    operator = Admin(
        service.name, version, config, loaded, lifecycle, event_loop, health, metrics, requests, watchdog, history
    )
    for sock in operations:
        serve_admin(sock, operator)
    observers: list[Callable[[float], None]] = [metrics.lag.observe, watchdog.beat, history.beat]
    if service.notify is not None:
        observers.append(service.notify(lifecycle, env))
    beating = asyncio.create_task(event_loop.run(*observers, lambda _: standard_logging.restore()))
    addresses = {"http": _address(http[0]) if http else None, "admin": _address(operations[0])}
    log.info("listening", name=service.name, version=version, **addresses, python=platform.python_version())
    async with _services(loaded, lifecycle, "service failed") as registry:
        service.register(registry, config)
        health.registry = registry
        names = [worker] if worker else [name for name, kind in service.workers.items() if kind.beside_requests]
        workers = [service.workers[name](name, config, registry, lifecycle) for name in names]
        if worker:
            lifecycle.stuck = workers[0].stuck
            workers[0].task.add_done_callback(lambda _: lifecycle.stop("the worker has ended"))
            lifecycle.advance(State.READY)
            await lifecycle.draining.wait()
        else:
            app = service.create_app(config, registry)
            use_problems(app)
            _warn_of_websockets(app)
            own = (lifecycle, health, metrics, requests, config.http.max_body, service.limits, tracing)
            server = Server(Middleware(app, *own), config)
            await server.serve(http)
            lifecycle.stop("the server has ended", at_once=True)
    beating.cancel()
    watchdog.stop()
    if tracing is not None:
        await tracing.close(lifecycle.time_left_s)


def _warn_of_websockets(app: Any) -> None:
    paths = list(websocket_paths(getattr(app, "routes", [])))
    if paths and importlib.util.find_spec("websockets") is None:
        log.error("websockets unavailable", routes=paths, hint="these routes can't be served: uv add websockets")


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
