"""Writes the files of the formats of `config`, for twelve settings whose values nobody judges.

Each line of stdin is a JSON list: a format, and values by the names of variables. Each line of stdout is the
answer: the files, or the settings that the format refused with the reasons.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import environ
from my_service.chassis.config import Settings, describe
from my_service.chassis.config.formats import FORMATS, SettingsDocument
from my_service.chassis.errors import ConfigurationError

LETTERS = "abcdefghijkl"


def config() -> type[Any]:
    """Make the configuration class: a group `free` with a text for each letter."""
    fields = {name: environ.var(None, help=f"what {name} is") for name in LETTERS}
    free: Any = environ.config(type("Free", (), {**fields, "__annotations__": dict.fromkeys(fields, str)}))
    group = {"free": environ.group(free), "__annotations__": {"free": free}}
    made: type[Any] = environ.config(prefix="APP")(type("Config", (Settings,), group))
    return made


def main() -> None:
    made = config()
    for line in sys.stdin:
        format, values = json.loads(line)
        try:
            answer = {"files": FORMATS[format](SettingsDocument("free", describe(made, values), True))}
        except ConfigurationError as error:
            answer = {"refused": {problem.setting: problem.problem for problem in error.problems}}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
