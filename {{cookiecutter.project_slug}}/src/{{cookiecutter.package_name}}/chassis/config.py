"""Configuration: environment variables become nested classes, and every mistake is explained at once.

environ-config declares and loads. What it leaves open is closed here by one walk over the declared classes:
all problems in one go, strict booleans, secrets from files, sources, help.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import attrs
import environ

from .secrets import Secret, Secrets

T = TypeVar("T", bound="Settings")
N = TypeVar("N", int, float)

SECRETS_DIRECTORY = Path("/run/secrets")
# environ-config's mark of a variable without a default.
_REQUIRED = environ.var().metadata["environ_config"].default


def boolean(value: str | bool) -> bool:
    """Accept 1/true/yes/on and 0/false/no/off in any case; anything else is an error, not False."""
    word = str(value).strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("use one of true, yes, on, 1, false, no, off, 0")


def integer(low: int, high: int) -> Callable[[str | int], int]:
    """Make a converter to a whole number from *low* to *high*."""
    return _between(int, low, high, f"use a whole number from {low} to {high}")


def seconds(low: float, high: float) -> Callable[[str | float], float]:
    """Make a converter to a number of seconds from *low* to *high*."""
    return _between(float, low, high, f"use a number of seconds from {low:g} to {high:g}")


def _between(kind: type[N], low: N, high: N, advice: str) -> Callable[[str | N], N]:
    def convert(value: str | N) -> N:
        try:
            number = kind(value)
        except ValueError:
            raise ValueError(advice) from None
        # Written so that "nan" is refused too.
        if not low <= number <= high:
            raise ValueError(advice)
        return number

    return convert


def choice(*words: str) -> Callable[[str], str]:
    """Make a converter that accepts *words* in any case."""

    def convert(value: str) -> str:
        if value.lower() not in words:
            raise ValueError(f"use one of {', '.join(words)}")
        return value.lower()

    return convert


def networks(value: str) -> str:
    """Accept IPv4 and IPv6 addresses and networks, separated by commas, or none at all."""
    items = [item.strip() for item in value.split(",") if item.strip()]
    for item in items:
        try:
            ipaddress.ip_network(item)
        except ValueError:
            raise ValueError(f"{item!r} is neither an address nor a network; use for example 10.0.0.0/8,::1") from None
    return ",".join(items)


def text(value: str) -> str:
    """Accept any text but an empty one."""
    if not value.strip():
        raise ValueError("give it a value, or leave the variable out")
    return value


def _as_secret(value: Secret) -> Secret:
    return value


def secret(*, optional: bool = False, help: str) -> Any:
    """Declare a secret: the file ``group_name`` in the secrets directory, loaded as a `Secret`."""
    if optional:
        return environ.var(default=None, converter=_as_secret, help=help)
    return environ.var(converter=_as_secret, help=help)


@environ.config(frozen=True)
class Http:
    host: str = environ.var("127.0.0.1", text, help="address that requests are taken on")
    port: int = environ.var(8000, integer(0, 65535), help="its port; 0 picks a free one")
    trusted_proxies: str = environ.var(
        "127.0.0.1", networks, help="addresses or networks whose X-Forwarded-* and Forwarded are believed"
    )
    max_body: int = environ.var(
        1048576, integer(0, 2**40), help="bytes that a request body may have; more is answered with 413"
    )
    max_connections: int = environ.var(
        4096,
        integer(1, 2**20),
        help="clients that may be connected at once, as far as file descriptors suffice; more are answered with 503",
    )


@environ.config(frozen=True)
class Admin:
    host: str = environ.var("127.0.0.1", text, help="address of health, metrics and introspection")
    port: int = environ.var(8001, integer(0, 65535), help="its port; 0 picks a free one")
    token: Secret = secret(optional=True, help="bearer token for the parts of the admin port that are guarded")


@environ.config(frozen=True)
class Log:
    level: str = environ.var(
        "info", choice("debug", "info", "warning", "error", "critical"), help="least level that is logged"
    )
    format: str = environ.var("auto", choice("auto", "json", "console"), help="auto: console on a terminal, else json")


@environ.config(frozen=True)
class Drain:
    delay: float = environ.var(
        0, seconds(0, 3600), help='seconds between "not ready" and closing the listener; deploy files set it'
    )
    timeout: float = environ.var(20, seconds(0, 3600), help="seconds that requests in flight may still take after that")


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
        help="directory of the secret files; else $CREDENTIALS_DIRECTORY, else /run/secrets",
    )
    refresh: float = environ.var(
        30, seconds(0, 3600), help="seconds between looks for changed secrets; 0 looks on SIGHUP only"
    )


@environ.config(frozen=True)
class Build:
    revision: str | None = environ.var(None, help="revision the image was built from; the image sets it")
    time: str | None = environ.var(None, help="time the image was built; the image sets it")


@environ.config(prefix="APP", frozen=True)
class Settings:
    """What every service needs from its environment; the service's own ``Config`` adds to it."""

    http: Http = environ.group(Http)
    admin: Admin = environ.group(Admin)
    log: Log = environ.group(Log)
    drain: Drain = environ.group(Drain)
    health: Health = environ.group(Health)
    secrets: SecretFiles = environ.group(SecretFiles)
    build: Build = environ.group(Build)


class Setting(NamedTuple):
    """One declared setting: its variable (or secret file), its default, and how text becomes its value."""

    name: str
    file: str | None
    required: bool
    default: object
    convert: Callable[[Any], object]
    help: str
    optional_group: tuple[str, ...] | None

    @property
    def label(self) -> str:
        """What people call it: the variable, or the name of the secret file."""
        return self.file or self.name


class Problem(NamedTuple):
    """Something that must be put right before the service can start."""

    setting: str
    problem: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}"


class ConfigurationError(Exception):
    """The configuration can't be used; *problems* holds every reason, *warnings* what may have led to them."""

    def __init__(self, problems: list[Problem], warnings: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
        self.warnings = warnings


class Loaded(NamedTuple, Generic[T]):
    """A configuration with what came along: its secrets, where each value is from, and warnings."""

    config: T
    secrets: Secrets
    entries: list[Entry]
    warnings: list[Problem]


class Entry(NamedTuple):
    """One setting as it is now: *value* as text (never a secret's), and the *source* it came from."""

    setting: Setting
    value: str | None
    source: str


def settings(cls: type[Settings]) -> list[Setting]:
    """List what *cls* and its groups declare, in the order of the classes."""
    return list(_walk(cls, ("APP",), None))


def _walk(cls: type, prefix: tuple[str, ...], optional: tuple[str, ...] | None) -> Iterator[Setting]:
    for field in attrs.fields(cls):
        entry = field.metadata.get("environ_config")
        if entry is None:
            continue
        if entry.sub_cls is not None:
            path = (*prefix, entry.sub_cls._prefix or field.name)
            yield from _walk(entry.sub_cls, path, optional or (path if entry.default is None else None))
            continue
        name = entry.name or "_".join((*prefix, field.name)).upper()
        is_secret = field.converter is _as_secret
        required = entry.default is _REQUIRED
        yield Setting(
            name=name,
            file=name.removeprefix("APP_").lower() if is_secret else None,
            required=required,
            default=None if required else entry.default,
            convert=field.converter or str,
            help=entry.help or "",
            optional_group=optional,
        )


def secrets_directory(env: Mapping[str, str]) -> Path:
    """Return where the secret files are: `APP_SECRETS_DIR`, `$CREDENTIALS_DIRECTORY` (systemd), /run/secrets."""
    return Path(env.get("APP_SECRETS_DIR") or env.get("CREDENTIALS_DIRECTORY") or SECRETS_DIRECTORY)


def describe(cls: type[Settings], env: Mapping[str, str]) -> list[Entry]:
    """Say of each setting what it is now and why, without judging it. Secrets show only where they are."""
    entries = []
    for setting in settings(cls):
        source = _source(setting, env)
        if setting.file is not None:
            path = secrets_directory(env) / setting.file
            entries.append(Entry(setting, "<secret>" if path.exists() else None, f"file {path}"))
        elif source is not None:
            entries.append(Entry(setting, env[source], f"environment {source}"))
        else:
            default = None if setting.default is None else as_text(setting.default)
            entries.append(Entry(setting, default, "default"))
    return entries


def load(cls: type[T], env: Mapping[str, str]) -> Loaded[T]:
    """Load *cls* from the environment *env* and the secret files.

    Raises:
        ConfigurationError: Something is missing or wrong; it holds every problem there is.
    """
    declared = settings(cls)
    plain = [setting for setting in declared if setting.file is None]
    hidden = {setting.file: setting for setting in declared if setting.file is not None}
    directory = secrets_directory(env)
    absent = _absent_groups(declared, env, directory)

    wanted = {name: setting for name, setting in hidden.items() if setting.optional_group not in absent}
    secrets = Secrets(
        directory,
        required=[name for name, setting in wanted.items() if setting.required],
        optional=[name for name, setting in wanted.items() if not setting.required],
    )
    values_now, unreadable = secrets.read()
    secrets.take(values_now)

    problems, values = [], dict[str, Any]()
    for setting in plain:
        source = _source(setting, env)
        if source is not None:
            values[setting.name] = env[source]
            try:
                setting.convert(env[source])
            except (ValueError, TypeError) as error:
                problems.append(Problem(source, f"{env[source]!r} is not accepted: {error}"))
        elif setting.required and setting.optional_group not in absent:
            problems.append(Problem(setting.name, f"is not set; {setting.help or 'it is required'}"))
    for name, setting in hidden.items():
        if setting.name in env:
            problems.append(
                Problem(setting.name, f"is a secret; put it into the file {directory / name} and unset the variable")
            )
        if name in unreadable:
            problems.append(Problem(name, unreadable[name]))
        if name in wanted:
            values[setting.name] = Secret(name, secrets)
    warnings = list(_unknown(declared, env))
    if problems:
        raise ConfigurationError(problems, warnings)

    try:
        config = environ.to_config(cls, values)
    except (ValueError, TypeError) as error:
        # A validator that looks at several settings at once: what it says is all that is known.
        raise ConfigurationError([Problem(cls.__name__, str(error))], warnings) from None
    return Loaded(config, secrets, describe(cls, env), warnings)


def _source(setting: Setting, env: Mapping[str, str]) -> str | None:
    if setting.name in env:
        return setting.name
    # What platforms that assign the port call it.
    if setting.name == "APP_HTTP_PORT" and "PORT" in env:
        return "PORT"
    return None


def _absent_groups(declared: list[Setting], env: Mapping[str, str], directory: Path) -> set[tuple[str, ...] | None]:
    """Return the optional groups of which nothing is set: they become None, and nothing in them is missing."""
    groups = {setting.optional_group for setting in declared} - {None}
    for setting in declared:
        if setting.name in env or (setting.file is not None and (directory / setting.file).exists()):
            groups.discard(setting.optional_group)
    return groups


def _unknown(declared: list[Setting], env: Mapping[str, str]) -> Iterator[Problem]:
    known = [setting.name for setting in declared]
    for name in sorted(env):
        if name.startswith("APP_") and name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "see the command config for all names"
            yield Problem(name, f"is no setting of this service; {hint}")


def as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
