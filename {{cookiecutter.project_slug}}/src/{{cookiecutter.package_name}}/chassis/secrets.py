"""Secrets are files, one a secret: child processes, crash reports and ``/proc`` show environment variables."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, quote_plus

from .errors import SecretNotSetError
from .logs import get_logger
from .stacks import run_in_thread

MAX_FILE_BYTES = 1024 * 1024  # No secret is larger, but a file that was mounted by mistake may be.
MIN_REDACTED_CHARACTERS = 4  # Shorter values are parts of ordinary words.
MAX_READS = 6  # A set that still changes at the last of them is left for the next reload.

log = get_logger("secrets")


class Secret:
    """A value that prints as ``<secret>``. Keep the object and not what it reveals, which changes."""

    __slots__ = ("_name", "_secrets")  # Some encoders write whatever is in a __dict__, so there is none.

    def __init__(self, name: str, secrets: Secrets) -> None:
        self._name, self._secrets = name, secrets

    @property
    def is_set(self) -> bool:
        """Whether there is a value: always for a required secret."""
        return self._name in self._secrets.values

    def reveal(self) -> str:
        """Return the newest value; raise `SecretNotSetError` if it is optional and its file is missing."""
        if (value := self._secrets.values.get(self._name)) is None:
            raise SecretNotSetError(f"the secret {self._name} is not set")
        return value

    async def refused(self) -> bool:
        """Read all secrets again now, because a server has refused this one; return whether it is another since."""
        before = self.reveal()
        await asyncio.wrap_future(run_in_thread("secrets", self._secrets.reload))
        return self.reveal() != before

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret can't be pickled or copied")


class Values(dict[str, str]):
    """The values of secrets, by name; its repr hides them from tracebacks and dumps."""

    def __repr__(self) -> str:
        return "<secrets>"


class Secrets:
    """The files in one directory that are this service's secrets, and their values as one set."""

    __slots__ = ("_optional", "_replaced", "changed", "directory", "names", "problems", "values")

    def __init__(self, directory: Path, required: Iterable[str], optional: Iterable[str]) -> None:
        self.directory, self._optional = directory, frozenset(optional)
        self.names = sorted({*required, *self._optional})
        self.values = self._replaced = Values()
        self.changed: dict[str, float] = {}  # When each value was last replaced, in seconds since 1970.
        self.problems: dict[str, str] = {}  # What was wrong with the last reload, by the names of the secrets.

    def read(self) -> tuple[Values, dict[str, str]]:
        """Read all files; return the values, and what is wrong, by the names of the secrets."""
        values, problems = Values(), dict[str, str]()
        for name in self.names:
            path = self.directory / name
            try:
                values[name] = read_file(path)
            except FileNotFoundError:
                if name not in self._optional or path.is_symlink():
                    problems[name] = f"the file {path} does not exist; put the secret there"
            except OSError as error:
                problems[name] = f"the file {path} can't be read: {error.strerror}"
            except ValueError as error:
                problems[name] = f"the file {path} {error}"
        return values, problems

    def reload(self, *, asked: bool = False) -> None:
        """Replace all values by what two reads in a row found, or none, and log that; if *asked*, log no news too."""
        known, before = self.problems, None
        for _ in range(MAX_READS):
            values, problems = self.read()
            if problems or values in (before, self.values):
                break
            before = values
        else:
            problems = dict.fromkeys(self.names, "the files keep changing while they are read")
        self.problems = problems
        if problems and (asked or problems != known):
            log.error("secrets reload failed", problems=problems, hint="the old ones stay in use")
        elif not problems and (changed := self.replace(values)):
            log.info("secrets reloaded", secrets=changed)
        elif asked:
            log.info("secrets unchanged")

    def replace(self, values: Values) -> list[str]:
        """Use *values* from now on; return the names of those that are new, different or gone."""
        if changed := [name for name in self.names if values.get(name) != self.values.get(name)]:
            self.changed.update(dict.fromkeys(changed, time.time()))
            self._replaced, self.values = self.values, values
        return changed

    def redact(self, text: str) -> str:
        """Return *text* without the values of secrets (the ones before too), however a repr or a URL writes them."""
        known = {value.strip() for value in (*self.values.values(), *self._replaced.values())}
        for value in sorted(known, key=len, reverse=True):
            quoted = (quote(value), quote(value, safe=""), quote_plus(value))
            for form in (value, repr(value)[1:-1], repr(value.encode())[2:-1], json.dumps(value)[1:-1], *quoted):
                text = text.replace(form, "<secret>") if len(value) >= MIN_REDACTED_CHARACTERS else text
        return text


def read_file(path: Path) -> str:
    """Return the secret in *path*, without one newline at its end; raise a `ValueError` if it is none."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is not a regular file")
    if about.st_size > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
    try:  # Windows' editors put a byte order mark first.
        text = path.read_bytes().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:  # It holds the bytes of the secret, so it is not chained.
        raise ValueError(f"is not UTF-8 (byte {error.start})") from None
    if not text:
        raise ValueError("is empty")
    return text


async def watch(secrets: Secrets, every: float, hangup: asyncio.Event, fixed: list[str]) -> None:
    """Reload changed secrets every *every* seconds (0: never) and on a hangup; log then which settings are *fixed*."""
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hangup.wait(), every or None)
        asked = hangup.is_set()
        hangup.clear()
        if asked and fixed:  # The environment's file may have changed, but a process keeps what it started with.
            log.info("settings need restart", settings=fixed, hint="they are from the environment at the start")
        try:  # Not to_thread(): a service whose own calls hang may have no thread left there.
            await asyncio.wrap_future(run_in_thread("secrets", partial(secrets.reload, asked=asked)))
        except RuntimeError as error:
            log.error("secrets reload failed", error=str(error), hint="the old ones stay in use")
