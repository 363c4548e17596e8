"""Lists of all settings: for people to read, and for programs to check and convert."""

import msgspec

from ..loading import as_text, printable
from .document import Files, SettingsDocument


def text(document: SettingsDocument) -> Files:
    """A table for people: every setting, its value, and where that is from."""
    rows = []
    for spec, value, source, _ in document.values:
        missing = "(required)" if spec.required else "-"
        rows.append((spec.label, missing if value is None else printable(value), source, spec.help))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return {"settings.txt": "".join("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() + "\n" for row in rows)}


def json(document: SettingsDocument) -> Files:
    """Every setting with all that is known of it, for tools."""
    rows = [
        {**spec._asdict(), "value": None if value is None else printable(value), "source": source}
        for spec, value, source, _ in document.values
    ]
    return {"settings.json": _as_json(rows)}


def json_schema(document: SettingsDocument) -> Files:
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


def markdown(document: SettingsDocument) -> Files:
    """A table for a README."""
    table = "| setting | default | meaning |\n|---|---|---|\n"
    for spec, *_ in document.values:
        default = "required" if spec.required else f"`{spec.default}`" if spec.default not in (None, "") else "-"
        name = f"secret file `{spec.file}`" if spec.file is not None else f"`{spec.name}`"
        table += f"| {name} | {default} | {spec.help.replace('|', '&#124;')} |\n"
    return {"settings.md": table}


def _as_json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode() + "\n"


LISTINGS = {"text": text, "json": json, "json-schema": json_schema, "markdown": markdown}
