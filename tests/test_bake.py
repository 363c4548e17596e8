"""What every bake promises, whatever was answered."""

import ast
import json
import re
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from conftest import TARGETS, Project

# Expressions of others: GitHub's, and the Go templates that consul-template, Prometheus and Docker read.
FOREIGN = {
    ".github": re.compile(r"\$\{\{.*?\}\}"),
    "deploy": re.compile(r"\{\{-?\s*(?!cookiecutter).*?\}\}"),
    "SECURITY.md": re.compile(r"\{\{ json \.SBOM \}\}"),
}


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
                halves = [
                    text for text in texts_in(document) if any(unicodedata.category(c) == "Cs" for c in text)
                ]
                assert not halves, f"{path} has broken characters in {halves!r}"


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


def pyproject(project: Project) -> Any:
    return tomllib.loads((project.path / "pyproject.toml").read_text(encoding="utf-8"))


def test_no_jinja_is_left_in_any_file_or_path(project: Project) -> None:
    assert len(project.files()) > 20, "this check reads too few files to mean anything"
    left = []
    for path in project.files():
        name = path.relative_to(project.path)
        text = path.read_text(encoding="utf-8")
        if foreign := FOREIGN.get(name.parts[0]):
            text = foreign.sub("", text)
        left += [f"{name}: {found}" for found in re.findall(r"\{[{%#].*", f"{name}\n{text}")]
    assert not left, "\n".join(left)


def test_every_file_parses(project: Project) -> None:
    for path in project.files():
        check_parses(path)


def test_the_answers_arrive_unchanged(project: Project) -> None:
    metadata = pyproject(project)["project"]
    assert metadata["description"] == project.answers["project_description"]
    assert metadata["name"] == project.answers["project_slug"] == project.path.name
    assert (project.path / "src" / project.package / "__main__.py").is_file()
    readme = (project.path / "README.md").read_text(encoding="utf-8")
    assert readme.splitlines()[0] == f"# {project.answers['project_name']}"


def test_only_the_chosen_target_is_there(project: Project) -> None:
    there = {path.name for path in (project.path / "deploy").iterdir()}
    assert there & set(TARGETS) == {project.answers["deploy_to"]}


def test_only_the_chosen_framework_is_there(project: Project) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in project.files())
    assert ("fastapi" in text.lower()) == (project.answers["web_framework"] == "fastapi")


def test_what_the_team_owns_exists(project: Project) -> None:
    skip = pyproject(project)["tool"]["cruft"]["skip"]
    made_later = {"uv.lock"}
    missing = [name for name in skip if name not in made_later and not (project.path / name).exists()]
    assert not missing, f"[tool.cruft] skip names what is not there: {missing}"
    assert not [name for name in skip if "/chassis" in name], "the chassis is the template's"
