"""The files that tools read. Their texts are in tools.txt, which says what the words in them stand for."""

import re
import shlex
from collections.abc import Callable
from importlib.resources import files

from ...errors import NotRepresentableError, Problem
from .document import CLOSE, OPEN, Files, Format, SettingsDocument, path
from .listings import LISTINGS

SPECIAL = "\"'\\$`# "  # Some reader of bare values takes each of these for a quote, an escape, or a comment.


def _bare(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it has a newline or another character that can't be printed")
    if found := ["a space" if character == " " else character for character in SPECIAL if character in value]:
        raise ValueError(f"it has {' '.join(found)}, which readers of bare values don't agree on")
    return value


def _unit(value: str) -> str:
    """Quote for the inside of a unit's double quotes, where ``%`` is special too."""
    if any(0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE for c in value):
        raise ValueError("it has a noncharacter of Unicode, which systemd takes for broken UTF-8")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return "".join(c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}" for c in escaped)


def _yaml(value: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value) + '"'


def _confd(document: SettingsDocument) -> Files:
    """Refuse a key that holds others, because ZooKeeper's back end reads either a node's value or its children."""
    keys = {spec.name: f"/{path(spec.name)}" for spec in document.settings}
    folders = [name for name, key in keys.items() if any(other.startswith(f"{key}/") for other in keys.values())]
    if folders:
        raise NotRepresentableError([Problem(name, f"its key {keys[name]} holds other keys too") for name in folders])
    return TEXTS["confd"](document)


def _read(texts: str) -> dict[str, Format]:
    formats = dict[str, Format]()
    for format, file, text in re.findall(r"^=== (\S+) (\S+)\n((?:(?!===).*\n)+)", texts, re.MULTILINE):
        formats.setdefault(format, Format({}, QUOTES.get(format, str))).files[file] = text
    return formats


QUOTES: dict[str, Callable[[str], str]] = {
    "dotenv": _bare,
    "direnv": shlex.quote,
    "kubernetes": _yaml,
    "swarm": lambda value: _yaml(value).replace("$", "$$"),
    "systemd": _unit,
}
TEXTS = _read(files(__package__).joinpath("tools.txt").read_text("utf-8").replace("«", OPEN).replace("»", CLOSE))
FORMATS: dict[str, Callable[[SettingsDocument], Files]] = {**LISTINGS, **TEXTS, "confd": _confd}
