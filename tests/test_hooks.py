"""A person's first render, with the tools of the case: what can't be done is said, nothing fails."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Bake, clean_environment, tool
from test_answers import HOOK

NEXT_STEPS = "uv run python -m my_service"

Person = Callable[..., "Rendered"]


class Rendered:
    """What a render by the cookiecutter command left, and what it said."""

    def __init__(self, path: Path, said: str, environment: dict[str, str]) -> None:
        self.path, self.said, self.environment = path, said, environment

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments),
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    @property
    def has_history(self) -> bool:
        return (self.path / ".git").exists()

    @property
    def is_locked(self) -> bool:
        return (self.path / "uv.lock").exists()


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """A person with a HOME of their own, the tools named, and git told who commits."""

    def render(*tools: str, within: str = "work", **changes: str) -> Rendered:
        home, programs, work = tmp_path / "home", tmp_path / "programs", tmp_path / within
        for folder in (home, programs, work):
            folder.mkdir(exist_ok=True)
        for name in tools:
            (programs / name).symlink_to(tool(name).resolve())
        (programs / "python3").symlink_to(Path(sys.executable).resolve())
        (home / "git").write_text("[user]\nname = Zoë\nemail = zoe@example.org\n", encoding="utf-8")
        cache = {"UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))}
        git = {"GIT_CONFIG_GLOBAL": str(home / "git"), "GIT_CONFIG_NOSYSTEM": "1"}
        environment = clean_environment(**{"HOME": str(home), "PATH": str(programs)} | cache | git | changes)
        environment.pop("EMAIL", None)
        done = subprocess.run(
            (sys.executable, "-m", "cookiecutter", "--no-input", str(ROOT)),
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (work / "my-service" / "pyproject.toml").is_file()
        assert "Traceback" not in done.stdout + done.stderr
        return Rendered(work / "my-service", done.stdout, environment)

    return render


def test_with_everything_the_render_and_the_lock_are_committed(person: Person) -> None:
    rendered = person("git", "uv")
    assert "Skipped" not in rendered.said
    assert NEXT_STEPS in rendered.said
    assert rendered.git("log", "--format=%an: %s") == (
        "Zoë: Lock the dependencies\nZoë: Render the service from its template"
    )
    assert rendered.git("branch", "--show-current") == "main"
    assert rendered.git("diff", "--name-only", "HEAD~1") == "uv.lock"
    assert rendered.git("status", "--porcelain", "--ignored") == ""


def test_without_tools_the_render_is_there_and_says_what_to_do_later(person: Person) -> None:
    rendered = person()
    assert "the first commit, because git is not on the PATH" in rendered.said
    assert "uv.lock, because uv is not on the PATH" in rendered.said
    assert "Later: git init" in rendered.said
    assert "Later: uv lock" in rendered.said
    assert NEXT_STEPS in rendered.said
    assert not rendered.has_history
    assert not rendered.is_locked


def test_without_a_network_the_render_is_committed_but_not_locked(person: Person, tmp_path: Path) -> None:
    rendered = person("git", "uv", UV_OFFLINE="1", UV_CACHE_DIR=str(tmp_path / "cache"))
    assert "uv.lock, because uv failed: " in rendered.said
    assert rendered.git("log", "--format=%s") == "Render the service from its template"
    assert not rendered.is_locked


def test_inside_another_work_tree_no_repository_is_made(person: Person, tmp_path: Path) -> None:
    subprocess.run((tool("git"), "init", "--quiet", tmp_path), env=clean_environment(), check=True)
    rendered = person("git")
    assert "because this folder is inside another git work tree" in rendered.said
    assert "Later: git add . && git commit" in rendered.said
    assert not rendered.has_history


def test_called_from_a_git_hook_the_other_repository_is_left_alone(person: Person, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run((tool("git"), "init", "--quiet", other), env=clean_environment(), check=True)
    rendered = person("git", GIT_DIR=str(other / ".git"), GIT_INDEX_FILE=str(other / ".git" / "index"))
    del rendered.environment["GIT_DIR"], rendered.environment["GIT_INDEX_FILE"]
    assert rendered.git("log", "--format=%s") == "Render the service from its template"
    assert not (other / ".git" / "index").exists()


def test_without_an_identity_nothing_is_committed(person: Person) -> None:
    rendered = person("git", GIT_CONFIG_GLOBAL=os.devnull)
    assert "because git does not know who commits (user.name and user.email)" in rendered.said
    assert not rendered.has_history


def test_an_identity_from_the_environment_counts(person: Person) -> None:
    roles = ("AUTHOR", "COMMITTER")
    identity = {f"GIT_{role}_{what}": "zoe@example.org" for role in roles for what in ("NAME", "EMAIL")}
    assert person("git", GIT_CONFIG_GLOBAL=os.devnull, **identity).has_history


def test_global_settings_of_git_neither_refuse_nor_change_the_commit(person: Person, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    (tmp_path / "git-template" / "hooks").mkdir(parents=True)
    hooks.mkdir()
    for name in ("pre-commit", "commit-msg", "prepare-commit-msg", "post-commit", "reference-transaction"):
        for folder in (hooks, tmp_path / "git-template" / "hooks"):
            (folder / name).write_text("#!/bin/sh\necho refused >&2\nexit 1\n", encoding="utf-8")
            (folder / name).chmod(0o755)
    (tmp_path / "ignore").write_text("*.toml\n.env*\n", encoding="utf-8")
    (tmp_path / "config").write_text(
        "[user]\nname = Zoë\nemail = zoe@example.org\n"
        f"[core]\nhooksPath = {hooks}\nexcludesFile = {tmp_path / 'ignore'}\n"
        f"[init]\ntemplateDir = {tmp_path / 'git-template'}\ndefaultBranch = trunk\n"
        "[commit]\ngpgSign = true\n[gpg]\nprogram = false\n",
        encoding="utf-8",
    )
    rendered = person("git", GIT_CONFIG_GLOBAL=str(tmp_path / "config"))
    assert rendered.has_history, rendered.said
    assert rendered.git("branch", "--show-current") == "main"
    assert "pyproject.toml" in rendered.git("ls-files").splitlines()


def test_a_git_that_fails_leaves_no_half_made_repository(person: Person, tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    broken = tmp_path / "programs" / "git"
    broken.write_text('#!/bin/sh\n/bin/mkdir -p .git\necho "disk is full" >&2\nexit 128\n', encoding="utf-8")
    broken.chmod(0o755)
    rendered = person()
    assert "the first commit, because git failed: disk is full" in rendered.said
    assert not rendered.has_history


def test_cruft_renders_without_the_extra_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    template, work = tmp_path / "template", tmp_path / "work"
    work.mkdir()
    # A repository made of this work tree, so that cruft sees what is not committed yet.
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, template, ignore=ignored)
    identity = ("-c", "user.name=Zoë", "-c", "user.email=zoe@example.org")
    environment = clean_environment(HOME=str(tmp_path), GIT_CONFIG_GLOBAL=os.devnull)
    for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "Template")):
        subprocess.run((tool("git"), *identity, *command), cwd=template, env=environment, check=True)
    capfd.readouterr()
    create = (sys.executable, "-m", "cruft", "create", "--no-input", "--default-config", str(template))
    subprocess.run(create, cwd=work, env=environment, check=True)
    said = capfd.readouterr()
    project = work / "my-service"
    assert said.out == ""
    assert not (project / ".git").exists()
    assert not (project / "uv.lock").exists()
    assert [path.name for path in (project / "deploy").iterdir()] == ["kubernetes"]
    assert json.loads((project / ".cruft.json").read_text(encoding="utf-8"))["commit"]


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_the_check_knows_every_name_that_a_project_installs(bake: Bake, uv: Path, framework: str) -> None:
    project = bake(web_framework=framework)
    project.run(uv, "sync", "--quiet")
    ask = "import importlib.metadata as m, json; print(json.dumps([*m.packages_distributions()]))"
    installed = set(json.loads(project.run(uv, "run", "python", "-c", ask).splitlines()[-1]))
    # Compiled helpers begin with a hash, and no answer can begin with an underscore.
    importable = {
        name for name in installed - {project.package} if re.fullmatch(r"[a-z]\w*(?<!__mypyc)", name)
    }
    assert len(importable) > 20
    unknown = {name for name in importable if not [*HOOK.package_problems(name)]}
    assert not unknown, f"hooks/pre_gen_project.py has no import name {unknown}"
    locked = tomllib.loads((project.path / "uv.lock").read_text(encoding="utf-8"))["package"]
    unknown = {package["name"] for package in locked} - {project.answers["project_slug"], *HOOK.DEPENDENCIES}
    assert not unknown, f"hooks/pre_gen_project.py has no distribution {unknown}"
