"""Whether a file of a known format is a valid one."""

import ast
import json
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import yaml


def check_parses(path: Path) -> None:
    """Fail if a file of a known format is no valid one."""
    text = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".py":
            ast.parse(text, filename=str(path))
        case ".toml":
            tomllib.loads(text)
        case ".json":
            json.loads(text)
        case ".yaml" | ".yml":
            for document in yaml.safe_load_all(text):
                # An escape of JSON for an emoji is two halves of one character for YAML.
                broken = [
                    text for text in texts_in(document) if any(unicodedata.category(c) == "Cs" for c in text)
                ]
                assert not broken, f"{path} has broken characters in {broken!r}"


def texts_in(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for pair in value.items():
                yield from texts_in(pair)
        case list() | tuple():
            for item in value:
                yield from texts_in(item)
