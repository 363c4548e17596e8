"""The settings of a service as people and tools read them; made from the classes, so never out of date.

The files that tools read are in formats.txt as texts, whose head says what the words in them stand for.
"""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from importlib import resources
from typing import NamedTuple

import attrs

from ..errors import ConfigurationError, Problem
from .loading import Setting, as_text, printable

Files = dict[str, str]  # Contents, by the names of the files.
# The braces of Go's templates. They are composed, because this file itself has been made by a template.
OPEN, CLOSE = "{" * 2, "}" * 2
CONDITION = re.compile(f"{OPEN}(?:if .*?|end){CLOSE}")
# What is repeated: a line, or a block in braces.
PIECE = re.compile(r"^(?:\w+ \{\n[^}]*\}|.+)$", re.MULTILINE)
SPECIAL = "\"'\\$`# "  # Some reader of bare values takes each of these for a quote, an escape, or a comment.


class SettingsDocument(NamedTuple):
    """The settings of the service *name*; *current*: with the values that are set now, and not only the defaults."""

    name: str
    settings: Sequence[Setting]
    current: bool = False


@attrs.frozen
class Format:
    """The files of a tool, as texts with words to fill in; *quote* raises a `ValueError` for what they can't hold."""

    files: dict[str, str]
    quote: Callable[[str], str] = str

    def __call__(self, document: SettingsDocument) -> Files:
        """Make the files; raise a `ConfigurationError` that names every value that is refused."""
        secrets = [setting.file for setting in document.settings if setting.file is not None]
        names = " ".join(setting.name for setting in document.settings if setting.file is None)
        words = {"SERVICE": document.name, "PREFIX": path(document.name), "NAMES": names}
        words["KEYS"] = " ".join(f"--from-file={file}" for file in secrets)
        files = Files()
        for name, text in ((filled(name, **words), filled(text, **words)) for name, text in self.files.items()):
            if "<FILE>" in name:
                files |= {filled(name, FILE=file): filled(text, FILE=file) for file in secrets}
            else:
                files[name] = PIECE.sub(lambda found: self._repeat(found[0], document), text)
        return files

    def _repeat(self, piece: str, document: SettingsDocument) -> str:
        """Fill in *piece* for each setting that it is about."""
        if "<NAME>" in piece:
            return self._assign(piece, document)
        if not (word := re.search("<(REQUIRED|FILE|MOUNT)>", piece)):
            return piece
        variables, lines = word[1] == "REQUIRED", list[str]()
        for setting in document.settings:
            if (setting.file is None) is variables and (setting.always_required or not variables):
                line = filled(piece, HELP=shlex.quote(setting.help), **{word[1]: setting.label})
                lines.append(commented(line) if word[1] == "MOUNT" and not setting.always_required else line)
        return "\n".join(lines)

    def _assign(self, line: str, document: SettingsDocument) -> str:
        """Fill in *line* for each variable, below its help; of a secret, there is only the help."""
        lines, problems, group = list[str](), list[Problem](), ""
        for setting in document.settings:
            name, default = setting.name, as_text(setting.default)
            before, group = group, name.split("_")[1]  # APP_HTTP_HOST is in a group with APP_HTTP_PORT.
            lines += [*([] if group == before else [""]), *_explanation(setting)]
            if setting.file is None and "<VALUE>" not in line:
                # Without the condition, the tool waits for the key.
                place = CONDITION.sub("", line) if setting.always_required else line
                lines += [_comment(f"default: {default or 'none'}"), filled(place, NAME=name, PATH=path(name))]
            elif setting.file is None:
                current = setting.value if document.current and setting.variable else None
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
            raise ConfigurationError(problems)
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


def _explanation(setting: Setting) -> list[str]:
    """Make the comment above a setting, in which no other syntax can be found."""
    mark = "required" if setting.required else "optional"
    if setting.required and setting.optional_groups:
        mark = f"required once anything of {setting.optional_groups[-1]} is there"
    if setting.file is not None:
        mark = f"{mark}: a secret, the file {setting.file}"
    return [_comment(setting.help), *([] if mark == "optional" else [f"# {mark}"])]


def _text(document: SettingsDocument) -> Files:
    """A table for people: every setting, its value, and where that is from."""
    rows = []
    for setting in document.settings:
        value = ("(required)" if setting.required else "-") if setting.value is None else printable(setting.value)
        rows.append((setting.label, value, setting.source, setting.help))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return {"settings.txt": "".join("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() + "\n" for row in rows)}


def _json(document: SettingsDocument) -> Files:
    """Every setting with all that is known of it, for tools."""
    return {"settings.json": _as_json([setting._asdict() for setting in document.settings])}


def _json_schema(document: SettingsDocument) -> Files:
    """A JSON schema of the environment: for a ConfigMap's data, or Compose's environment, before it is deployed."""
    variables = [setting for setting in document.settings if setting.file is None]
    properties = {setting.name: {"type": "string", "description": setting.help} for setting in variables}
    for setting in variables:
        if setting.default is not None:
            properties[setting.name]["default"] = as_text(setting.default)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Environment of {document.name}",
        "type": "object",
        "properties": properties,
        "required": [setting.name for setting in variables if setting.always_required],
        # Variables of others may be there, but no misspelt ones, and no secrets, which are files.
        "propertyNames": {"anyOf": [{"enum": list(properties)}, {"not": {"pattern": "^APP_"}}]},
    }
    return {"settings.schema.json": _as_json(schema)}


def _markdown(document: SettingsDocument) -> Files:
    """A table for a README."""
    table = "| setting | default | meaning |\n|---|---|---|\n"
    for setting in document.settings:
        default = "-" if setting.default in (None, "") else f"`{setting.default}`"
        name = f"`{setting.name}`" if setting.file is None else f"secret file `{setting.file}`"
        table += f"| {name} | {'required' if setting.required else default} | {setting.help.replace('|', '&#124;')} |\n"
    return {"settings.md": table}


def _as_json(value: object) -> str:
    return printable(json.dumps(value, indent=2, default=str, ensure_ascii=False)) + "\n"


def _bare(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it has a newline or another character that can't be printed")
    if found := ["a space" if character == " " else character for character in SPECIAL if character in value]:
        raise ValueError(f"it has {' '.join(found)}, which readers of bare values don't agree on")
    return value


def _escaped(value: str) -> str:
    """Escape for the inside of double quotes, as YAML and systemd read them."""
    return "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)


def _unit(value: str) -> str:
    if any(0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE for c in value):
        raise ValueError("it has a noncharacter of Unicode, which systemd takes for broken UTF-8")
    return _escaped(value).replace("%", "%%")


def _confd(document: SettingsDocument) -> Files:
    """Refuse a key that holds others, because ZooKeeper's back end reads either a node's value or its children."""
    keys = {setting.name: f"/{path(setting.name)}" for setting in document.settings if setting.file is None}
    folders = [name for name, key in keys.items() if any(other.startswith(f"{key}/") for other in keys.values())]
    if folders:
        raise ConfigurationError([Problem(name, f"its key {keys[name]} holds other keys too") for name in folders])
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
    "kubernetes": _escaped,
    "swarm": lambda value: _escaped(value).replace("$", "$$"),
    "systemd": _unit,
}
TEXTS = _read()
FORMATS: dict[str, Callable[[SettingsDocument], Files]] = {
    **{"text": _text, "json": _json, "json-schema": _json_schema, "markdown": _markdown},
    **TEXTS,
    "confd": _confd,
}
