"""Load a configuration by one walk over its classes, which collects every problem.

environ-config's own `to_config` stops at the first value that is refused, and doesn't name it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import attrs
import environ

from ..errors import ConfigurationError, Problem
from ..secrets import Secret, Secrets
from .settings import Settings

T = TypeVar("T", bound=Settings)

ENTRY = "environ_config"  # environ-config's key in the metadata of a field.
REQUIRED = environ.var().metadata[ENTRY].default
NO_VALUES: tuple[type, ...] = (type(REQUIRED), type(attrs.Factory(list)))  # What stands where a default would be.
SIMILARITY = 0.85  # This much of a name that may be another's must agree. At 0.8, a_key is taken for b_key.


class Setting(NamedTuple):
    """One declared setting: *name* is its variable, *file* the name of its file if it is a secret, *label* either.

    Its *value* is a text (never a secret's); *source* says where that is from, *variable* if it is a variable.
    """

    name: str
    file: str | None
    label: str
    required: bool
    always_required: bool  # and not only once something of its optional groups is there
    default: object
    help: str
    optional_groups: tuple[str, ...]
    value: str | None
    source: str
    variable: str | None


class LoadedConfig(NamedTuple, Generic[T]):
    """A configuration with its secrets, all settings, and warnings."""

    config: T
    secrets: Secrets
    values: list[Setting]
    warnings: list[Problem]


def describe(cls: type, env: Mapping[str, str], prefix: str = "APP", optional: tuple[str, ...] = ()) -> list[Setting]:
    """List what *cls* and its groups declare, and what it is in *env*, without judging it."""
    found = list[Setting]()
    for field, entry, name in _fields(cls, prefix):
        required, file, source = entry.default is REQUIRED, None, "default"
        if entry.sub_cls is not None:
            found += describe(entry.sub_cls, env, name, (*optional, name) if entry.default is None else optional)
            continue
        default = None if isinstance(entry.default, NO_VALUES) else entry.default
        value = None if default is None else as_text(default)
        # Platforms that assign the port call it PORT.
        names = (name, "PORT") if name == "APP_HTTP_PORT" else (name,)
        variable = next((name for name in names if name in env), None)
        if Secret in field.metadata:
            file = name.removeprefix("APP_").lower()
            path = secrets_directory(env) / file
            value, source = "<secret>" if os.path.lexists(path) else None, printable(f"file {path}")
        elif variable is not None:
            value, source = env[variable], f"environment {variable}"
        about = (name, file, file or name, required, required and not optional, default)
        found.append(Setting(*about, " ".join((entry.help or "").split()), optional, value, source, variable))
    return found


def load(cls: type[T], env: Mapping[str, str]) -> LoadedConfig[T]:
    """Load *cls* from the environment *env* and the secret files; a `ConfigurationError` holds every problem."""
    settings = describe(cls, env)
    walk = _Walk(settings, env)
    config = walk.make(cls, "APP", cls.__name__)
    http, admin = (walk.settings[f"APP_{of}_PORT"] for of in ("HTTP", "ADMIN"))
    hosts = {walk.settings[f"APP_{of}_HOST"].value for of in ("HTTP", "ADMIN")}
    if http.value == admin.value != "0" and (len(hosts) == 1 or hosts & {"0.0.0.0", "::"}):
        walk.problems.append(Problem(admin.name, f"{admin.value} is {http.variable or http.name} too; use another"))
    files = {setting.name: setting.file for setting in settings}
    missing = {file for file in files.values() if file} - walk.secrets.values.keys()
    warnings = [*_unknown_variables(files, env), *_misnamed_files(missing, walk.secrets.directory)]
    if env.get("APP_SECRETS_DIR") and not walk.secrets.directory.is_dir():
        warnings.append(Problem("APP_SECRETS_DIR", f"{walk.secrets.directory} is no directory: no secret is set"))
    if walk.problems:
        raise ConfigurationError(walk.problems, warnings)
    return LoadedConfig(config, walk.secrets, settings, warnings)


class _Walk:
    """The walk over the classes, with the secrets and the problems that it has found."""

    def __init__(self, settings: list[Setting], env: Mapping[str, str]) -> None:
        self.problems = list[Problem]()
        self.settings = {setting.name: setting for setting in settings}
        # An optional group that requires something becomes None when nothing of it is set.
        self._absent = {each.optional_groups[-1] for each in settings if each.required and each.optional_groups}
        for each in settings:
            if each.variable or (each.file and each.value):
                self._absent.difference_update(each.optional_groups)
        wanted = [each for each in settings if each.file and self._absent.isdisjoint(each.optional_groups)]
        required, optional = ([each.label for each in wanted if each.required is which] for which in (True, False))
        self.secrets = Secrets(secrets_directory(env), required, optional)
        read, self._unreadable = self.secrets.read()
        self.secrets.replace(read)

    def make(self, cls: type[Any], prefix: str, label: str) -> Any:
        """Return an object of *cls*; NOTHING if it has problems, which bear *label* if they are of no one setting."""
        before, given = len(self.problems), dict[str, Any]()
        for field, entry, name in _fields(cls, prefix):
            if entry.sub_cls is None:
                value = self._take(self.settings[name])
            else:
                value = None if name in self._absent else self.make(entry.sub_cls, name, name)
            if value is not attrs.NOTHING:
                given[field.name] = value
        self._judge(cls, prefix, given)
        if len(self.problems) == before:
            try:
                return cls(**given)
            except Exception as error:  # A team's class may raise anything.
                self._add(label, _reason(error))
        return attrs.NOTHING

    def _take(self, setting: Setting) -> Any:
        """Return the text or the secret that a setting is made of; NOTHING stands for its default."""
        if setting.file is not None:
            if setting.variable is not None:
                path = self.secrets.directory / setting.file
                self._add(setting.variable, f"is a secret; put it into the file {path} instead")
            if setting.file in self._unreadable:
                self._add(setting.file, self._unreadable[setting.file])
            return Secret(setting.file, self.secrets)
        if setting.variable is not None and setting.value is not None:
            if printable(setting.value) == setting.value:
                return setting.value
            self._add(setting.variable, f"{setting.value!r} is not accepted: it is not UTF-8")
        elif setting.required:
            self._add(setting.name, f"is not set; {setting.help or 'it is required'}")
        return attrs.NOTHING

    def _judge(self, cls: type[Any], prefix: str, given: dict[str, Any]) -> None:
        """Convert and validate each field of *cls* by itself: attrs would stop at the first problem."""
        instance = object.__new__(cls)
        for validating in (False, True):
            for field, _, name in _fields(cls, prefix):
                value = given.get(field.name, field.default)
                try:
                    if validating and field.validator is not None and hasattr(instance, field.name):
                        field.validator(instance, field, getattr(instance, field.name))
                    elif not validating and not isinstance(value, NO_VALUES):
                        more = (instance, field) if isinstance(field.converter, attrs.Converter) else ()
                        convert: Any = field.converter or (lambda value: value)
                        object.__setattr__(instance, field.name, convert(value, *more))
                except Exception as error:  # So may its converters and validators.
                    # A validator may look at another field, which has no value if that one is the problem.
                    if not (isinstance(error, AttributeError) and error.obj is instance):
                        shown = repr(value) if field.name in given else f"its default {value!r}"
                        variable = self.settings[name].variable if name in self.settings else None
                        self._add(variable or name, f"{shown} is not accepted: {_reason(error)}")

    def _add(self, label: str, problem: str) -> None:
        self.problems.append(Problem(label, self.secrets.redact(problem)))


def _unknown_variables(known: Mapping[str, str | None], env: Mapping[str, str]) -> Iterator[Problem]:
    """Warn of each variable that looks like a setting and is none; *known* has the file of each that is a secret."""
    for name in sorted(env.keys() - known.keys()):
        ours, wanted = name.startswith("APP_"), re.sub(r"\W", "_", name).upper()
        if wanted.startswith("APP_") and (near := get_close_matches(wanted, known, 1, 0.6 if ours else SIMILARITY)):
            meant = f"the secret file {known[near[0]]}" if known[near[0]] else near[0]
            yield Problem(name, f"is no setting of this service; did you mean {meant}?")
        elif ours:
            yield Problem(name, "is no setting of this service; see the command config for all names")


def _misnamed_files(missing: Collection[str], directory: Path) -> Iterator[Problem]:
    """Warn of each file that is named nearly like a secret that is *missing*, such as ``DB-PASSWORD.txt``."""
    # Reading the secrets says why the directory can't be listed, if there must be any.
    with contextlib.suppress(OSError):
        for path in sorted(directory.iterdir()):
            names = [re.sub(r"\W", "_", name).lower().removeprefix("app_") for name in (path.name, path.stem)]
            near = [meant for name in names for meant in get_close_matches(name, missing, 1, SIMILARITY)]
            if near and path.name not in missing:
                yield Problem(path.name, f"is no secret of this service; did you mean {directory / near[0]}?")


def _fields(cls: type, prefix: str) -> Iterator[tuple[attrs.Attribute[Any], Any, str]]:
    """Yield each field that environ-config knows, with its entry and the name of its variable or group."""
    for field in attrs.fields(cls):
        if (entry := field.metadata.get(ENTRY)) is not None:
            yield field, entry, entry.name or f"{prefix}_{field.name}".upper()


def _reason(error: Exception) -> str:
    """Return the text of *error* in one line, without the objects that attrs and others put beside it."""
    plain = all(isinstance(part, str | bytes | int) for part in error.args)
    said = str(error) if plain else next((part for part in error.args if isinstance(part, str)), "")
    kind = "" if said and isinstance(error, ValueError | TypeError) else type(error).__name__
    return " ".join(": ".join(filter(None, (kind, said))).split())


def secrets_directory(env: Mapping[str, str]) -> Path:
    """Return where the secrets are; systemd sets CREDENTIALS_DIRECTORY."""
    return Path(env.get("APP_SECRETS_DIR") or env.get("CREDENTIALS_DIRECTORY") or "/run/secrets")


def as_text(value: object) -> str:
    """Write a default as one writes it into a variable."""
    written = str(value.value if isinstance(value, Enum) else "" if value is None else value)
    return written.lower() if isinstance(value, bool) else written


def printable(value: str) -> str:
    """Escape what was not UTF-8 in the environment."""
    return value.encode(errors="backslashreplace").decode()
