"""What every bake promises, whatever was answered."""

import re
import tomllib
from pathlib import Path
from typing import Any

from kit.parsing import check_parses
from kit.project import TARGETS, Project, Renders, git

# The modules of the chassis that an answer adds.
ADDED = {
    ("deploy_to", "systemd"): ("systemd.py",),
    ("database", "postgresql"): ("migrate.py", "postgres.py"),
    ("http_client", "httpx2"): ("outgoing.py", "propagation.py"),
    ("tracing", "opentelemetry"): ("otlp.py", "tracing.py"),
}
# Expressions of others: GitHub's, and the Go templates that consul-template, Prometheus and Docker read.
FOREIGN = {
    ".github": re.compile(r"\$\{\{.*?\}\}"),
    "deploy": re.compile(r"\{\{-?\s*(?!cookiecutter).*?\}\}"),
    "SECURITY.md": re.compile(r"\{\{ json \.SBOM \}\}"),
}


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
    files = [path for path in project.files() if "chassis" not in path.relative_to(project.path).parts]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    assert ("fastapi" in text.lower()) == (project.answers["web_framework"] == "fastapi")


def test_the_chassis_is_the_same_whatever_is_answered(project: Project, renders: Renders) -> None:
    usual = renders.get()
    src, usual_src = (each.path / "src" / each.package / "chassis" for each in (project, usual))
    names = [
        path.relative_to(usual_src) for path in usual_src.rglob("*.*") if "__pycache__" not in path.parts
    ]
    assert len(names) > 20
    # An answer may add whole modules, and change none.
    added = {path.name for path in src.rglob("*.py")} - {path.name for path in usual_src.rglob("*.py")}
    wanted = {name for answer, names in ADDED.items() if answer in project.answers.items() for name in names}
    assert added == wanted
    for name in names:
        text = (src / name).read_text(encoding="utf-8").replace(project.package, usual.package)
        assert text == (usual_src / name).read_text(encoding="utf-8"), name


def test_what_the_team_owns_exists(project: Project) -> None:
    skip = pyproject(project)["tool"]["cruft"]["skip"]
    made_later = {"uv.lock"}
    missing = [name for name in skip if name not in made_later and not (project.path / name).exists()]
    assert not missing, f"[tool.cruft] skip names what is not there: {missing}"
    assert not [name for name in skip if "/chassis" in name], "the chassis is the template's"


def test_a_checkout_with_the_line_ends_of_windows_has_the_same_bytes(
    renders: Renders, template: Path, tmp_path: Path
) -> None:
    project = renders.copy(tmp_path, {"deploy_to": "systemd"}).commit()
    for number, source in enumerate((project.path, template)):
        clone = tmp_path / str(number)
        git(tmp_path, "clone", "--quiet", "--config", "core.autocrlf=true", str(source), str(clone))
        names = git(clone, "ls-files", "-z").strip("\0").split("\0")
        assert len(names) > 20
        assert not [name for name in names if (clone / name).read_bytes() != (source / name).read_bytes()]


def test_a_fresh_clone_has_a_folder_for_secrets_and_git_sees_none_of_them(
    renders: Renders, tmp_path: Path
) -> None:
    project = renders.copy(tmp_path, {}).commit()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(project.path), str(clone))
    # Otherwise Compose makes it, as root's.
    (clone / "secrets" / "admin_token").write_text("hunter2")
    (clone / ".env").write_text("APP_HTTP_PORT=1\n")
    assert git(clone, "status", "--porcelain") == ""
