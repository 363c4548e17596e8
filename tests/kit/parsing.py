"""Whether a file of a known format is a valid one."""

import ast
import json
import tomllib
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
            # libyaml refuses an escape of JSON for an emoji, which is two halves of one character for YAML.
            for _ in yaml.load_all(text, Loader=yaml.CSafeLoader):
                pass
