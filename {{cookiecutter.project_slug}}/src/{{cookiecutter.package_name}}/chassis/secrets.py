"""Secrets are files: one a secret, opened by name, read again while the service runs.

Kubernetes, Docker, Swarm, systemd and Vault's agent all deliver secrets this way; environment variables
are seen by child processes, crash reports and ``/proc``.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_BYTES = 1024 * 1024


class SecretNotSetError(LookupError):
    """An optional secret was asked for, and its file is not there."""


class Secret:
    """A value that prints as ``<secret>``; only `reveal` gives it away, and gives the newest.

    The object stays the same for the life of the process, so hold on to it and not to what it reveals.
    """

    __slots__ = ("_name", "_secrets")

    def __init__(self, name: str, secrets: Secrets) -> None:
        self._name = name
        self._secrets = secrets

    @property
    def is_set(self) -> bool:
        """Whether there is a value: always for a required secret."""
        return self._name in self._secrets.values

    def reveal(self) -> str:
        """Return the value.

        Raises:
            SecretNotSetError: It is optional and its file is missing.
        """
        try:
            return self._secrets.values[self._name]
        except KeyError:
            raise SecretNotSetError(f"the secret {self._name} is not set") from None

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret can't be pickled or copied")


class Values(dict[str, str]):
    """The values of secrets, by name; it prints as what they are, so that no traceback or dump shows them."""

    def __repr__(self) -> str:
        return "<secrets>"


class Secrets:
    """The files in one directory that are this service's secrets, and their values as one set."""

    __slots__ = ("_optional", "changed", "directory", "names", "values")

    def __init__(self, directory: Path, required: Iterable[str], optional: Iterable[str]) -> None:
        self.directory = directory
        self._optional = frozenset(optional)
        self.names = sorted({*required, *self._optional})
        self.values = Values()
        # When each value was last taken over, in seconds since 1970.
        self.changed: dict[str, float] = {}

    def read(self) -> tuple[Values, dict[str, str]]:
        """Read all files; return the values, and what is wrong, by the names of the secrets."""
        values, problems = Values(), dict[str, str]()
        for name in self.names:
            path = self.directory / name
            try:
                values[name] = read_file(path)
            except FileNotFoundError:
                if name not in self._optional:
                    problems[name] = f"the file {path} does not exist; put the secret there"
            except (OSError, ValueError) as error:
                problems[name] = f"the file {path} {_reason(error)}"
        return values, problems

    def reload(self) -> tuple[bool, dict[str, str]]:
        """Take over what is on disk, all or nothing; return whether it changed, and what is wrong.

        A set that changes while it is read is read again: never half of the old and half of the new.
        """
        values, problems = self.read()
        if problems or values == self.values:
            return False, problems
        for _ in range(5):
            again, problems = self.read()
            if again == values:
                break
            values = again
        else:
            problems = dict.fromkeys(self.names, "the files keep changing while they are read")
        if problems:
            return False, problems
        self.take(values)
        return True, {}

    def take(self, values: Values) -> None:
        """Use *values* from now on."""
        now = time.time()
        for name in self.names:
            if values.get(name) != self.values.get(name):
                self.changed[name] = now
        self.values = values


def read_file(path: Path) -> str:
    """Return the secret in *path*, less one trailing newline.

    Raises:
        OSError: It can't be opened or read.
        ValueError: It is no regular file, too large, not UTF-8, or empty.
    """
    # O_NONBLOCK: opening a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is not a regular file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        # The error itself holds the bytes of the secret.
        raise ValueError(f"is not UTF-8 (byte {error.start})") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError("is empty")
    return text


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return f"can't be read: {error.strerror or type(error).__name__}"
    return str(error)
