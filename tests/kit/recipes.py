"""The pages of docs/recipes: what is in their code blocks, and a service that does what they say."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kit.project import ROOT, Project, git

RECIPES = ROOT / "docs" / "recipes"
PAGES = {page.stem: page for page in sorted(RECIPES.glob("*.md")) if page.stem != "README"}
# A block, and the framework that it is for if the line before says so.
BLOCK = re.compile(r"^(?:With (Starlette|FastAPI):\n\n)?```(\w+)\n(.*?)^```$", flags=re.M | re.S)
# The first line of a block that is a whole file.
PATH = re.compile(r"# (\S+\.\w+)\n")


@dataclass(frozen=True)
class Recipe:
    """A page: the packages to add, whole files, and changes of files by their paths."""

    packages: tuple[str, ...]
    files: Mapping[str, str]
    changes: Mapping[str, str]


def read(name: str, framework: str = "starlette") -> Recipe:
    """Return what the page *name* says to a service of *framework*."""
    found = [match.groups() for match in BLOCK.finditer(PAGES[name].read_text(encoding="utf-8"))]
    blocks = [(language, text) for of, language, text in found if of is None or of.lower() == framework]
    shell = "".join(text for language, text in blocks if language == "sh")
    packages = tuple(re.findall(r"[^\s\"']+", " ".join(re.findall(r"^uv add (.+)$", shell, flags=re.M))))
    files = {match[1]: text[match.end() :] for _, text in blocks if (match := PATH.match(text))}
    changes = {text.split()[1].removeprefix("a/"): text for language, text in blocks if language == "diff"}
    return Recipe(packages, files, changes)


def is_for(service: Project, path: str) -> bool:
    """Whether a file is the service's: of the files to deploy, those of its own platform."""
    return not path.startswith("deploy/") or path.startswith(f"deploy/{service.answers['deploy_to']}/")


def apply(service: Project, recipe: Recipe) -> list[str]:
    """Write the files of a page and make its changes; return the page's own tests."""
    for path, text in recipe.files.items():
        if is_for(service, path):
            file = service.path / path
            assert not file.exists(), f"{path} is a change of a file, so it must be a diff"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    for path, change in recipe.changes.items():
        if is_for(service, path):
            patch = service.path / "change.patch"
            patch.write_text(change, encoding="utf-8")
            # git would take a folder in another repository for a part of that.
            git(service.path, "apply", patch.name, GIT_CEILING_DIRECTORIES=str(service.path.parent))
            patch.unlink()
    return [path for path in recipe.files if path.startswith("tests/test_")]
