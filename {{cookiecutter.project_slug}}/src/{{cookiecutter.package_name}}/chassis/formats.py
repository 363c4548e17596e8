"""The settings of a service as people and tools read them; made from the classes, so never out of date."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .config import Entry


def text(entries: Sequence[Entry]) -> str:
    """A table for people: every setting, its value, and where that is from."""
    rows = [(entry.setting.label, _value(entry), entry.source, entry.setting.help) for entry in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def dotenv(entries: Sequence[Entry]) -> str:
    """An example of a ``.env`` file: every setting with its help, and its default as a comment."""
    lines = ["# Made by the command config --format dotenv. Copy it to .env and take the # off what you change."]
    for entry in entries:
        setting = entry.setting
        lines += ["", f"# {setting.help}"]
        if setting.file is not None:
            lines.append(f"# {'required' if setting.required else 'optional'}: a secret, the file {setting.file}")
        else:
            default = "" if setting.default is None else setting.default
            lines += ["# required"] * setting.required + [f"#{setting.name}={default}"]
    return "\n".join(lines) + "\n"


def json(entries: Sequence[Entry]) -> str:
    """Every setting with all that is known of it, for tools."""
    rows = [
        {
            "name": entry.setting.name,
            "file": entry.setting.file,
            "required": entry.setting.required,
            "default": entry.setting.default,
            "value": entry.value,
            "source": entry.source,
            "help": entry.setting.help,
        }
        for entry in entries
    ]
    return msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() + "\n"


def markdown(entries: Sequence[Entry]) -> str:
    """A table for a README."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for entry in entries:
        setting = entry.setting
        default = "required" if setting.required else "-" if setting.default is None else f"`{setting.default}`"
        name = f"secret file `{setting.file}`" if setting.file is not None else f"`{setting.name}`"
        lines.append(f"| {name} | {default} | {setting.help.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def _value(entry: Entry) -> str:
    if entry.value is not None:
        return entry.value
    return "(required)" if entry.setting.required else "-"


FORMATS: dict[str, Callable[[Sequence[Entry]], str]] = {
    "text": text,
    "dotenv": dotenv,
    "json": json,
    "markdown": markdown,
}
