"""What a service hands over to the chassis, and the limits that it may change."""

from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol

import attrs
import svcs
from starlette.types import ASGIApp, Scope

from .lifecycle import Lifecycle
from .workers import Worker

# Ends a span, given the response's status and the route; returns the ids of a span that is sent, for an exemplar.
EndSpan = Callable[[int, str | None], Mapping[str, str] | None]


class Tracing(Protocol):
    """What makes a span of each request."""

    def begin(self, scope: Scope, ids: dict[str, str]) -> EndSpan | None: ...
    async def close(self, timeout_s: float) -> None: ...


@attrs.frozen
class Limits:
    """What a client may take of an instance; a balancer in front should be stricter, and a test may be."""

    # A request line with its header block, or anything else that is no body, such as trailers.
    head_bytes: int = 65536
    # Longer than a slow client needs, and short enough to be no easy prey.
    head_timeout_s: float = 20.0
    # What a client may keep the service waiting for a body, and the bytes that earn it one second more.
    body_timeout_s: float = 20.0
    body_bytes_per_s: int = 1000
    # What is read of a refused body, so that the client sees the answer and not a reset of the connection.
    linger_s: float = 2.0
    linger_bytes: int = 16 * 1024 * 1024
    # A client that ends its direction this soon after its request still wants the answer; later, it has left.
    half_close_s: float = 0.1


@attrs.frozen
class Command:
    """A command of the service's own: *run* is given arguments, configuration and services; SIGTERM cancels it."""

    run: Callable[[Namespace, Any, svcs.Container], Awaitable[int | None]]
    help: str
    add_arguments: Callable[[ArgumentParser], object] = lambda _: None


@attrs.frozen
class Service:
    """The parts of a service.

    Args:
        name: The name of its distribution and command.
        config: Its configuration class, made of `Settings`.
        register: Registers what it talks to, with pings, given a registry and the configuration.
        create_app: Makes its ASGI application, given the configuration and the registry.
        non_critical: The services whose failing ping does not make an instance unready.
        limits: What a client may take, beyond what the settings say.
        workers: Its workers by name: work that no request waits for.
        tracing: Starts to make spans, given name, version and environment, if there are to be any.
        commands: Its own commands, by their names.
        notify: Tells a service manager of the lifecycle, given that and the environment; returns what beats call.
    """

    name: str
    config: type[Any]
    register: Callable[[svcs.Registry, Any], None]
    create_app: Callable[[Any, svcs.Registry], ASGIApp]
    non_critical: Collection[type] = ()
    limits: Limits = attrs.field(factory=Limits)
    workers: Mapping[str, type[Worker]] = attrs.field(factory=dict)
    tracing: Callable[[str, str, Mapping[str, str]], Tracing | None] | None = None
    commands: Mapping[str, Command] = attrs.field(factory=dict)
    notify: Callable[[Lifecycle, Mapping[str, str]], Callable[[float], None]] | None = None
