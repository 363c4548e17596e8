"""Each makes a value of a text without white space around it, or raises a `ValueError` that says what is right."""

import ipaddress
import re
from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


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
    return value


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
