"""A template that goes on, services that were rendered from it, and their updates."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cruft import create

from kit.project import copy_of_the_template, git
from kit.service import clean_environment
from kit.tools import tool

PROJECT = "{{cookiecutter.project_slug}}"
PACKAGE = f"{PROJECT}/src/{{{{cookiecutter.package_name}}}}"
RELEASES = ("v1.1.0", "v1.2.0", "v2.0.0")
# An update locks the dependencies anew, may have to download some, and runs the service's tests.
UPDATE_SECONDS = 600


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{file} has no {old!r}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def shell(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all", ".")
    git(folder, "commit", "--quiet", "--message", message)


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files that git tracks or would add."""
    names = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def link(service: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((service / ".cruft.json").read_text(encoding="utf-8"))
    return state


def release(folder: Path, version: str, notes: str) -> None:
    replace(folder / "CHANGELOG.md", "## Unreleased\n", f"## Unreleased\n\n## {version[1:]}\n\n{notes}\n")
    commit(folder, f"Release {version}")
    git(folder, "tag", version)


def template_with_releases(folder: Path) -> Path:
    """Make a repository of this template as it is in the work tree, v1.0.0, and three releases after it."""
    copy_of_the_template(folder)
    git(folder, "tag", "v1.0.0")
    project, package = folder / PROJECT, folder / PACKAGE

    # One more setting, a wider range, a changed Dockerfile, workflow and deploy file.
    admin = "@environ.config(frozen=True)\nclass Admin:\n"
    later = '    later: int = environ.var(7, integer(0, 9), help="a setting that came later")\n\n\n'
    replace(package / "chassis/config/settings.py", f"\n\n{admin}", later + admin)
    replace(project / "pyproject.toml", '"msgspec>=0.22,<0.23"', '"msgspec>=0.22,<0.24"')
    replace(project / "Dockerfile", "STOPSIGNAL SIGTERM\n", "# As it was.\nSTOPSIGNAL SIGTERM\n")
    replace(project / ".github/workflows/ci.yml", "timeout-minutes: 10", "timeout-minutes: 11")
    (deployment,) = (project / "deploy/kubernetes/base").glob("*deployment.yaml*")
    deployment.write_text("# It came later.\n" + deployment.read_text(encoding="utf-8"), encoding="utf-8")
    release(
        folder, "v1.1.0", "- APP_HTTP_LATER, a setting.\n\n### What an update asks of a service\n\nNothing."
    )

    # A file renamed, one deleted, one added, and a question that nobody was asked before.
    tests = project / "tests/chassis"
    (tests / "test_contract.py").rename(tests / "test_promises.py")
    (project / ".envrc").unlink()
    questions = json.loads((folder / "cookiecutter.json").read_text(encoding="utf-8"))
    private = {name: questions.pop(name) for name in [*questions] if name.startswith("_")}
    text = json.dumps({**questions, "on_call": "", **private}, ensure_ascii=False, indent=2)
    (folder / "cookiecutter.json").write_text(text + "\n", encoding="utf-8")
    (project / "docs").mkdir()
    (project / "docs/on-call.md").write_text(
        'Call {{ cookiecutter.on_call or "nobody" }}.\n', encoding="utf-8"
    )
    release(folder, "v1.2.0", "- A question, `on_call`.")

    # More ranges, the last of them right above the team's own; a file that will be the team's.
    replace(project / "pyproject.toml", '"svcs>=26.2,<27"', '"svcs>=26.2,<28"')
    replace(project / "pyproject.toml", '"uvloop>=0.23,<0.24"', '"uvloop>=0.23,<0.25"')
    replace(project / "pyproject.toml", '"ruff>=0.17.6,<0.18"', '"ruff>=0.17.6,<0.19"')
    replace(
        project / "pyproject.toml",
        '    "tests/environment.py",\n',
        '    "src/{{ cookiecutter.package_name }}/jobs.py",\n    "tests/environment.py",\n',
    )
    (package / "jobs.py").write_text('"""Yours: what runs beside the requests."""\n', encoding="utf-8")
    replace(project / "compose.yaml", "stop_grace_period: 25s", "stop_grace_period: 26s")
    replace(project / "Dockerfile", "# As it was.\n", "# As it was, and will be.\n")
    replace(package / "chassis/__init__.py", '"""', '"""Later. ')
    release(folder, "v2.0.0", "### What an update asks of a service\n\nTo look at `jobs.py`.")
    return folder


def small_template(folder: Path) -> Path:
    """Make a repository of this template without its chassis, which renders in half the time."""
    copy_of_the_template(folder)
    for name in (f"{PACKAGE}/chassis", f"{PROJECT}/tests/chassis"):
        shutil.rmtree(folder / name)
    (folder / PACKAGE / "chassis.py").touch()
    commit(folder, "Leave out the chassis")
    return folder


def next_release(template: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    """Clone a template without releases, let *change* work in the clone, and release that as v1.1.0."""
    git(folder.parent, "clone", "--quiet", str(template), str(folder))
    git(folder, "tag", "v1.0.0")
    change(folder)
    release(folder, "v1.1.0", "- It came later: größer → 天気.")
    return folder


def relink(service: Path, **changes: object) -> None:
    """Change what .cruft.json says of the template, and commit that."""
    (service / ".cruft.json").write_text(json.dumps(link(service) | changes, indent=2), encoding="utf-8")
    commit(service, "Change the link")


def cruft(folder: Path, command: str, *arguments: str) -> str:
    extra = ("--no-input", "--default-config") if command == "create" else ()
    done = subprocess.run(
        (sys.executable, "-m", "cruft", command, *arguments, *extra),
        cwd=folder,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def created(template: Path, into: Path, checkout: str | None = None, **answers: str) -> Path:
    """Do what `cruft create` does with these answers in a new folder, without a process of its own."""
    into.mkdir(parents=True)
    into = into.resolve()
    made = create(
        template.as_uri(), into, checkout=checkout, extra_context=answers, no_input=True, default_config=True
    )
    return Path(made)


def render(source: str, into: Path, *options: str, tools: tuple[str, ...] = ("git", "uv")) -> Path:
    """Render as a person does, who has just these tools."""
    programs = into / ".programs"
    programs.mkdir(parents=True)
    for name in tools:
        (programs / name).symlink_to(tool(name).resolve())
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    (into / ".gitconfig").write_text("[user]\nname = Zoë\nemail = zoe@example.org\n", encoding="utf-8")
    cache = os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    done = subprocess.run(
        (sys.executable, "-m", "cookiecutter", "--no-input", source, *options),
        cwd=into,
        env=clean_environment(HOME=str(into), PATH=str(programs), UV_CACHE_DIR=cache),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (project,) = (path for path in into.iterdir() if path.is_dir() and not path.name.startswith("."))
    return project


def without_environments(folder: Path) -> str:
    """Make a uv that builds no environments, and return the PATH with it: git and cruft are real.

    It locks nothing, writes the .env.example that is there, and has this environment run tests. While it
    locks, it runs what is in $MEANWHILE.
    """
    folder.mkdir()
    (folder / "uv").write_text(
        "#!/bin/sh\n"
        'case "$1 $2 $3" in\n'
        '"lock "*) exec sh -c "${MEANWHILE:-:}" ;;\n'
        '"run python -m") exec cat .env.example ;;\n'
        f'"run pytest "*) exec {sys.executable} -m pytest ;;\n'
        "esac\n"
        'while [ "$1" != python ]; do shift; done\n'
        "shift\n"
        f'exec {sys.executable} "$@"\n',
        encoding="utf-8",
    )
    (folder / "uv").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def with_gh(folder: Path) -> Path:
    """Add a stand-in for GitHub's client to these programs; it notes its calls and finds request $OPEN."""
    (folder / "gh").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {folder}/calls\n'
        '[ "$2" != list ] || if [ "${OPEN:-}" ]; then\n'
        'echo "[{\\"number\\": $OPEN, \\"isCrossRepository\\": ${FORKED:-false}}]"; else echo "[]"; fi\n'
        # What `gh auth setup-git` does: git gets the token for GitHub's host from gh.
        '[ "$2" != setup-git ] || git config --global credential.helper '
        "'!f() { echo username=x; echo password=$GH_TOKEN; }; f'\n",
        encoding="utf-8",
    )
    (folder / "gh").chmod(0o755)
    return folder / "calls"


def update(service: Path, *options: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run `make update` in the service, and return what became of it; a variable that is None is not set."""
    roles, facts = ("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")
    identity = {f"GIT_{role}_{fact}": "zoe@example.org" for role in roles for fact in facts}
    path = {"PATH": f"{tool('uv').parent}{os.pathsep}{os.environ['PATH']}"}
    variables = clean_environment(**identity, **path) | environment
    return subprocess.run(
        (tool("make"), "update", f"UPDATE={shlex.join(options)}"),
        cwd=service,
        env={name: value for name, value in variables.items() if value is not None},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=UPDATE_SECONDS,
    )
