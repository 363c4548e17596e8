"""A service whose converters and validators are a team's own, and raise whatever they like."""

from __future__ import annotations

import os
import sys
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import environ
import svcs
from my_service.chassis import Secret, Service, Settings, integer, run, secret
from starlette.applications import Starlette

COLORS = {"red": 1, "green": 2}


class Refusal(Exception):
    """An exception that holds no text."""


def refuse(value: str) -> str:
    """Accept only what it got as a default."""
    if value != "default":
        raise Refusal
    return value


def divide(value: str, instance: Any, field: attrs.Attribute[Any]) -> float:
    """Divide one by it."""
    return 1 / float(value)


def numbers(words: list[str]) -> tuple[int, ...]:
    """Read whole numbers."""
    return tuple(map(int, words))


# environ-config hands on to attrs whatever attrs takes, though its types don't say so.
SHARE: Any = attrs.Converter(divide, takes_self=True, takes_field=True)
SHORT: Any = [attrs.validators.instance_of(str), attrs.validators.max_len(3)]


@environ.config(frozen=True)
class Picky:
    price: Decimal = environ.var("1.5", Decimal, help="price of a greeting")
    zone: ZoneInfo = environ.var("UTC", ZoneInfo, help="time zone")
    color: int = environ.var("red", COLORS.__getitem__, help="color")
    share: float = environ.var("1", SHARE, help="share")
    secret_word: str = environ.var("default", refuse, help="word")
    sizes: tuple[int, ...] = environ.var("1", attrs.converters.pipe(str.split, numbers))
    limit: int = environ.var("10", int, validator=attrs.validators.ge(1), help="limit")
    code: str = environ.var("abc", validator=attrs.validators.matches_re("[a-z]+"), help="code")
    unit: str = environ.var("s", validator=attrs.validators.in_(["s", "ms"]), help="unit")
    short: str = environ.var("a", validator=SHORT, help="short")
    low: int = environ.var(1, integer(0, 99), help="low end")
    high: int = environ.var(9, integer(0, 99), help="high end")
    password: Secret = secret(optional=True, help="a secret that the checks below reveal")

    # attrs' own way of writing a validator; it looks at a field that comes later.
    @low.validator  # type: ignore[attr-defined,untyped-decorator]
    def _below_high(self, attribute: attrs.Attribute[int], value: int) -> None:
        if value > self.high:
            raise ValueError(f"it is above APP_PICKY_HIGH ({self.high})")

    def __attrs_post_init__(self) -> None:
        if self.password.is_set and len(self.password.reveal()) < 12:
            raise RuntimeError(f"the password {self.password.reveal()} is\ntoo short")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    picky: Picky = environ.group(Picky)


def register(registry: svcs.Registry, config: Config) -> None:
    """Talk to nothing."""


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    """Answer nothing."""
    return Starlette()


if __name__ == "__main__":
    sys.exit(run(Service("my-service", Config, register, create_app), sys.argv[1:], os.environ))
