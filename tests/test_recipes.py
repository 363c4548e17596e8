"""The pages of docs/recipes, each applied to a fresh service, which then keeps the page's promise."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.project import ROOT, Project, Renders, git

pytestmark = pytest.mark.slow

RECIPES = ROOT / "docs" / "recipes"
# What a page is for, if it is not the default service.
ANSWERS: Mapping[str, Mapping[str, str]] = {"openapi": {"web_framework": "fastapi"}}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.M | re.S)
# The first line of a block that is a whole file.
PATH = re.compile(r"# (\S+\.\w+)\n")


@dataclass(frozen=True)
class Recipe:
    """A page: the packages to add, whole files, and changes of files."""

    packages: tuple[str, ...]
    files: Mapping[str, str]
    changes: tuple[str, ...]


def read(page: Path) -> Recipe:
    blocks = [(match[1], match[2]) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]
    shell = "".join(text for language, text in blocks if language == "sh")
    packages = tuple(re.findall(r"[^\s\"']+", " ".join(re.findall(r"^uv add (.+)$", shell, flags=re.M))))
    files = {match[1]: text[match.end() :] for _, text in blocks if (match := PATH.match(text))}
    return Recipe(packages, files, tuple(text for language, text in blocks if language == "diff"))


PAGES = {page.stem: page for page in sorted(RECIPES.glob("*.md")) if page.stem != "README"}


@pytest.fixture(scope="module")
def services(renders: Renders, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    """One service for all pages of a framework, so that mypy need not read everything for each page anew."""
    made = {}
    for framework in {answers(name)["web_framework"] for name in PAGES}:
        project = renders.fresh(tmp_path_factory.mktemp(framework), {"web_framework": framework})
        packages = [
            package
            for name, page in PAGES.items()
            if answers(name)["web_framework"] == framework
            for package in read(page).packages
        ]
        if packages:
            project.run(uv, "add", "--quiet", *packages)
        project.sync()
        git(project.commit().path, "tag", "rendered")
        made[framework] = project
    return made


def answers(name: str) -> Mapping[str, str]:
    return {"web_framework": "starlette", **ANSWERS.get(name, {})}


def apply(service: Project, recipe: Recipe) -> list[str]:
    """Make the service what the page says, from what the template generates; return the page's own tests."""
    git(service.path, "reset", "--hard", "--quiet", "rendered")
    git(service.path, "clean", "--force", "--quiet", "-d")
    for path, text in recipe.files.items():
        assert not (service.path / path).exists(), f"{path} is a change of a file, so it must be a diff"
        (service.path / path).write_text(text, encoding="utf-8")
    for change in recipe.changes:
        patch = service.path / "change.patch"
        patch.write_text(change, encoding="utf-8")
        git(service.path, "apply", patch.name)
        patch.unlink()
    return [path for path in recipe.files if path.startswith("tests/test_")]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_keeps_its_promise(services: dict[str, Project], name: str) -> None:
    service = services[answers(name)["web_framework"]]
    own_tests = apply(service, read(PAGES[name]))
    assert own_tests, "a page without a test"
    tools = service.path / ".venv/bin"
    service.run(tools / "python", "-m", "pytest", "-q", *own_tests)
    for command in (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)):
        service.run(tools / command[0], *command[1:])


def test_the_gate_of_the_openapi_page_refuses_what_breaks_a_client(services: dict[str, Project]) -> None:
    service = services["fastapi"]
    gate: tuple[str | Path, ...] = (service.python, "-m", "pytest", "-q")
    gate += tuple(apply(service, read(PAGES["openapi"])))
    service.run(*gate)
    git(service.path, "add", "--all")
    git(service.path, "commit", "--quiet", "--message", "Commit the document")
    git(service.path, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert "skipped" not in service.run(*gate)
    app, document = service.path / "src" / service.package / "app.py", service.path / "openapi.json"
    app.write_text(app.read_text(encoding="utf-8").replace('"/greetings"', '"/hello"'), encoding="utf-8")
    document.unlink()
    with pytest.raises(pytest.fail.Exception, match="post /greetings is gone"):
        service.run(*gate)


def test_the_list_of_recipes_is_complete() -> None:
    listed = re.findall(r"\]\(([\w-]+)\.md\)", (RECIPES / "README.md").read_text(encoding="utf-8"))
    assert listed == [*dict.fromkeys(listed)]
    assert set(listed) == set(PAGES)
