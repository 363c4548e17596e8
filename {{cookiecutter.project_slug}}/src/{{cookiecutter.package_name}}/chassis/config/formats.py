"""The settings of a service as people and tools read them; made from the classes, so never out of date.

The files that tools read are in formats.txt as texts, whose head says what the words in them stand for.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from importlib import resources
from typing import NamedTuple

import attrs
import msgspec

from ..errors import NotRepresentableError, Problem
from .loading import SettingSpec, SettingValue, as_text, printable

Files = dict[str, str]  # Contents, by the names of the files.
# The braces of Go's templates. They are composed, because this file itself has been made by a template.
OPEN, CLOSE = "{" * 2, "}" * 2
CONDITION = re.compile(f"{OPEN}(?:if .*?|end){CLOSE}")
# What is repeated: a line, or a block in braces.
PIECE = re.compile(r"^(?:.*\{\n[^}]*\}|.+)$", re.MULTILINE)
SPECIAL = "\"'\\$`# "  # Some reader of bare values takes each of these for a quote, an escape, or a comment.


class SettingsDocument(NamedTuple):
    """The settings of the service *name*; *current*: with the values that are set now, and not only the defaults."""

    name: str
    values: Sequence[SettingValue]
    current: bool = False

    @property
    def settings(self) -> list[SettingSpec]:
        """What is a variable."""
        return [value.spec for value in self.values if value.spec.file is None]

    @property
    def secrets(self) -> list[SettingSpec]:
        """What is a file."""
        return [value.spec for value in self.values if value.spec.file is not None]


@attrs.frozen
class Format:
    """The files of a tool, as texts with words to fill in; *quote* raises a `ValueError` for what they can't hold."""

    files: dict[str, str]
    quote: Callable[[str], str] = str

    def __call__(self, document: SettingsDocument) -> Files:
        """Make the files; raise a `NotRepresentableError` that holds every value that is refused."""
        secrets = [spec.label for spec in document.secrets]
        names, keys = " ".join(spec.name for spec in document.settings), "--from-file=" + " --from-file=".join(secrets)
        words = {"SERVICE": document.name, "PREFIX": path(document.name), "NAMES": names, "KEYS": keys}
        files = Files()
        for name, text in ((filled(name, **words), filled(text, **words)) for name, text in self.files.items()):
            if "<FILE>" in name:
                files |= {name.replace("<FILE>", file): text.replace("<FILE>", file) for file in secrets}
            else:
                made = PIECE.sub(lambda found: self._repeat(found[0], document), text)
                files[name] = _without_empty_keys(made) if name.endswith(".yaml") else made
        return files

    def _repeat(self, piece: str, document: SettingsDocument) -> str:
        if "<NAME>" in piece:
            return self._with_settings(piece, document)
        if not (word := re.search("<(REQUIRED|FILE|MOUNT)>", piece)):
            return piece
        required, lines = [spec for spec in document.settings if spec.always_required], list[str]()
        for spec in required if word[1] == "REQUIRED" else document.secrets:
            line = filled(piece, HELP=shlex.quote(spec.help), **{word[1]: spec.label})
            lines.append(commented(line) if word[1] == "MOUNT" and not spec.always_required else line)
        return "\n".join(lines)

    def _with_settings(self, line: str, document: SettingsDocument) -> str:
        lines, problems = list[str](), list[Problem]()
        for spec, value, _, variable in document.values:
            lines += _explanation(spec)
            name, default, current = spec.name, as_text(spec.default), value if document.current and variable else None
            if spec.file is None and "<VALUE>" not in line:
                place = CONDITION.sub("", line) if spec.always_required else line  # A tool then waits for its key.
                lines += [_comment(f"default: {default or 'none'}"), filled(place, NAME=name, PATH=path(name))]
            elif spec.file is None:
                try:
                    if current is not None and printable(current) != current:
                        raise ValueError("it is not UTF-8")
                    written = filled(line, NAME=name, VALUE=self.quote(default if current is None else current))
                except ValueError as error:
                    written = f" its default can't be written in this format: {error}"
                    if current is not None:
                        problems.append(Problem(name, f"its value can't be written in this format: {error}"))
                lines.append(commented(written) if current is None else written)
        if problems:
            raise NotRepresentableError(problems)
        return "\n".join(lines)


def filled(text: str, **words: str) -> str:
    """Put each of *words* where *text* has it in angle brackets."""
    return re.sub("<([A-Z]+)>", lambda found: words.get(found[1], found[0]), text)


def path(name: str) -> str:
    """Write a name as a path: ``app/log/level``."""
    return re.sub("[_-]", "/", name.lower())


def commented(lines: str) -> str:
    return "#" + lines.replace("\n", "\n#")


def _comment(words: str) -> str:
    return " ".join(f"# {words}".split()).replace(OPEN, "{ {")


def _explanation(spec: SettingSpec) -> list[str]:
    """Make the comment above a setting, in which no other syntax can be found."""
    mark = "required" if spec.required else "optional"
    if spec.required and spec.optional_groups:
        mark = f"required once anything of {spec.optional_groups[-1]} is there"
    if spec.file is not None:
        mark = f"{mark}: a secret, the file {spec.file}"
    return ["", _comment(spec.help), *([] if mark == "optional" else [f"# {mark}"])]


def _without_empty_keys(yaml: str) -> str:
    """Make a comment of each key of a YAML file that has nothing but comments below it."""
    lines, depth_below = list[str](), 0
    for line in reversed(yaml.split("\n")):
        depth = len(line) - len(line.lstrip())
        empty = re.fullmatch(" *[a-z]+:", line) and depth_below <= depth
        if line and line[0] != "#" and not empty:
            depth_below = depth
        lines.insert(0, commented(line) if empty else line)
    return "\n".join(lines)


def _text(document: SettingsDocument) -> Files:
    """A table for people: every setting, its value, and where that is from."""
    rows = []
    for spec, value, source, _ in document.values:
        missing = "(required)" if spec.required else "-"
        rows.append((spec.label, missing if value is None else printable(value), source, spec.help))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return {"settings.txt": "".join("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() + "\n" for row in rows)}


def _json(document: SettingsDocument) -> Files:
    """Every setting with all that is known of it, for tools."""
    rows = [
        {**spec._asdict(), "value": None if value is None else printable(value), "source": source}
        for spec, value, source, _ in document.values
    ]
    return {"settings.json": _as_json(rows)}


def _json_schema(document: SettingsDocument) -> Files:
    """A JSON schema of the environment: for a ConfigMap's data, or Compose's environment, before it is deployed."""
    properties = dict[str, dict[str, str]]()
    for spec in document.settings:
        default = {} if spec.default is None else {"default": as_text(spec.default)}
        properties[spec.name] = {"type": "string", "description": spec.help, **default}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Environment of {document.name}",
        "type": "object",
        "properties": properties,
        "required": [spec.name for spec in document.settings if spec.always_required],
        # Variables of others may be there, but no misspelt ones, and no secrets, which are files.
        "propertyNames": {"anyOf": [{"enum": list(properties)}, {"not": {"pattern": "^APP_"}}]},
    }
    return {"settings.schema.json": _as_json(schema)}


def _markdown(document: SettingsDocument) -> Files:
    """A table for a README."""
    table = "| setting | default | meaning |\n|---|---|---|\n"
    for spec, *_ in document.values:
        default = "required" if spec.required else f"`{spec.default}`" if spec.default not in (None, "") else "-"
        name = f"secret file `{spec.file}`" if spec.file is not None else f"`{spec.name}`"
        table += f"| {name} | {default} | {spec.help.replace('|', '&#124;')} |\n"
    return {"settings.md": table}


def _as_json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode() + "\n"


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


def _read() -> dict[str, Format]:
    formats, texts = dict[str, Format](), resources.files(__package__).joinpath("formats.txt").read_text("utf-8")
    texts = texts.replace("«", OPEN).replace("»", CLOSE)
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
TEXTS = _read()
FORMATS: dict[str, Callable[[SettingsDocument], Files]] = {
    **{"text": _text, "json": _json, "json-schema": _json_schema, "markdown": _markdown},
    **TEXTS,
    "confd": _confd,
}
