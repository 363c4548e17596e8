"""The settings that every service has, to which its own ``Config`` adds, and the converters that it may use too.

A converter makes a value of a text without white space around it, or raises a `ValueError` that says what is right.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import environ

from ..secrets import Secret
from ..standard_logging import LOG_LEVELS

N = TypeVar("N", int, float)

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def boolean(value: str | bool) -> bool:
    """Accept 1/true/yes/on and 0/false/no/off in any case; anything else is an error, not False."""
    return choice(*TRUE, *FALSE)(str(value)) in TRUE


def integer(low: int, high: int) -> Callable[[str | int], int]:
    """Make a converter to a whole number from *low* to *high*."""
    return _between(int, r"[+-]?[0-9]+", low, high, f"use a whole number from {low} to {high}")


def seconds(low: float, high: float) -> Callable[[str | float], float]:
    """Make a converter to a number of seconds from *low* to *high*."""
    return _between(float, r"[+-]?[0-9]*\.?[0-9]+", low, high, f"use a number of seconds from {low:g} to {high:g}")


def _between(kind: type[N], pattern: str, low: N, high: N, advice: str) -> Callable[[str | N], N]:
    def convert(value: str | N) -> N:
        # int() and float() by themselves also accept white space, 1_000 and the digits of other scripts.
        if not re.fullmatch(pattern, str(value)) or not low <= (number := kind(value)) <= high:
            raise ValueError(advice)
        return number

    return convert


def choice(*words: str) -> Callable[[str], str]:
    """Make a converter that accepts *words* in any case."""

    def convert(value: str) -> str:
        for word in words:
            if word.lower() == value.lower():
                return word
        raise ValueError(f"use one of {', '.join(words)}")

    return convert


def text(value: str) -> str:
    """Accept any text but an empty one."""
    if not value or value != value.strip():
        raise ValueError("give it a value without white space around it, or leave the variable out")
    return value


def host(value: str) -> str:
    """Accept the name or the address of a host; nothing is looked up."""
    try:
        if ":" in value or value.replace(".", "").isdecimal():
            ipaddress.ip_address(value)
        elif not re.fullmatch(rb"[\w.-]+", value.encode("idna")):
            raise ValueError
    except ValueError:
        raise ValueError("use the name or the address of a host alone: localhost, 0.0.0.0 or ::1") from None
    return value if ":" in value else value.lower()


def networks(value: str) -> str:
    """Accept IPv4 and IPv6 addresses and networks, separated by commas, or none, as uvicorn does."""
    items = [item for item in re.split(", *", value) if item]
    try:
        [ipaddress.ip_network(item) for item in items]
    except ValueError as error:
        raise ValueError(f"{error}; use for example 10.0.0.0/8,::1") from None
    return ",".join(items)


def log_levels(value: str) -> dict[str, str]:
    """Accept levels of single loggers, separated by commas, or none: ``httpx2=warning,sqlalchemy=info``."""
    levels = dict[str, str]()
    for item in filter(None, re.split(", *", value)):
        name, _, level = item.partition("=")
        if re.search(r"^$|\s", name) or level.lower() not in LOG_LEVELS:
            raise ValueError(f"use LOGGER=LEVEL instead of {item!r}, with one of {', '.join(LOG_LEVELS)}")
        levels[name] = level.lower()
    return levels


def secret(*, optional: bool = False, help: str) -> Any:
    """Declare a secret: the file ``group_name`` in the secrets directory, loaded as a `Secret`."""
    field = environ.var(None, help=help) if optional else environ.var(help=help)
    field.metadata[Secret] = True  # This tells a secret from a variable.
    return field


@environ.config(frozen=True)
class Http:
    host: str = environ.var("127.0.0.1", host, help="address to listen on for requests")
    port: int = environ.var(8000, integer(0, 65535), help="port to listen on for requests; 0 picks a free one")
    trusted_proxies: str = environ.var(
        "127.0.0.1", networks, help="addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed"
    )
    max_body: int = environ.var(1048576, integer(0, 2**40), help="bytes of a request body; more is answered with 413")
    max_connections: int = environ.var(4096, integer(1, 2**20), help="clients at once; more are answered with 503")
    keep_alive: int = environ.var(
        75, integer(1, 86400), help="seconds that an idle connection is kept; choose more than the load balancer does"
    )


@environ.config(frozen=True)
class Admin:
    host: str = environ.var("127.0.0.1", host, help="address to listen on for health, metrics and introspection")
    port: int = environ.var(8001, integer(0, 65535), help="port to listen on for these; 0 picks a free one")
    token: Secret = secret(optional=True, help="bearer token for the guarded parts of the admin port")


@environ.config(frozen=True)
class Log:
    level: str = environ.var("info", choice(*LOG_LEVELS), help="lowest level that is logged")
    format: str = environ.var("auto", choice("auto", "json", "console"), help="auto: json, but console on a terminal")
    levels: dict[str, str] = environ.var("", log_levels, help="levels of single loggers: httpx2=warning,asyncio=error")


@environ.config(frozen=True)
class Drain:
    delay: float = environ.var(0, seconds(0, 3600), help='seconds between "not ready" and closing the listener')
    timeout: float = environ.var(20, seconds(0, 3600), help="seconds that in-flight requests may still take after that")


@environ.config(frozen=True)
class Health:
    check_timeout: float = environ.var(2, seconds(0.01, 60), help="seconds that one readiness check may take")
    stall_limit: float = environ.var(
        10, seconds(0.1, 3600), help="seconds without progress of the event loop before liveness fails"
    )


@environ.config(frozen=True)
class SecretFiles:
    dir: str | None = environ.var(
        None,
        attrs.converters.optional(text),
        help="directory of the secret files; without it $CREDENTIALS_DIRECTORY, or /run/secrets",
    )
    refresh: float = environ.var(30, seconds(0, 3600), help="seconds between looks for changes; 0: only on SIGHUP")


@environ.config(frozen=True)
class Build:
    revision: str | None = environ.var(None, help="revision the image was built from; the image sets it")
    time: str | None = environ.var(None, help="time the image was built; the image sets it")


@environ.config(prefix="APP", frozen=True)
class Settings:
    """What every service needs from its environment."""

    http: Http = environ.group(Http)
    admin: Admin = environ.group(Admin)
    log: Log = environ.group(Log)
    drain: Drain = environ.group(Drain)
    health: Health = environ.group(Health)
    secrets: SecretFiles = environ.group(SecretFiles)
    build: Build = environ.group(Build)
