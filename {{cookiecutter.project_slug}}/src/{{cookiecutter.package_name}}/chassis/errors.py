"""The exceptions of the chassis, each with the data that a caller needs, and the one form of an error over HTTP."""

import json
from http import HTTPStatus
from typing import NamedTuple

PROBLEM_JSON = "application/problem+json"


def problem(status: int, detail: str | None = None, **more: object) -> bytes:
    """Return an error as RFC 9457 (problem+json) has it."""
    about = {"status": status, "title": HTTPStatus(status).phrase, "detail": detail, **more}
    members = {name: value for name, value in about.items() if value is not None}
    return json.dumps(members, separators=(",", ":")).encode()


class ChassisError(Exception):
    """The base of all exceptions that the chassis raises on purpose."""


class Problem(NamedTuple):
    """Something that must be put right, with the name of the variable or of the secret file that it is about."""

    setting: str
    problem: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}"


class ConfigurationError(ChassisError):
    """The configuration can't be used; *problems* holds every reason, *warnings* what may have led to them."""

    def __init__(self, problems: list[Problem], warnings: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
        self.warnings = warnings


class NotRepresentableError(ChassisError):
    """A format of the command ``config`` can't hold some values; *problems* names each."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class SecretNotSetError(ChassisError, LookupError):
    """An optional secret was asked for, and its file is not there."""
