"""The settings that every service has; a service's own ``Config`` adds to them."""

from typing import Any

import attrs
import environ

from ..secrets import Secret
from .converters import LOG_LEVELS, choice, host, integer, log_levels, networks, seconds, text


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
