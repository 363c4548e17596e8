"""A person's first render, with the tools of the case: what can't be done is said, nothing fails."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.command import Command
from kit.project import git
from kit.service import clean_environment, wait_for
from kit.tools import tool
from kit.updates import PACKAGE, PROJECT, commit

NEXT_STEPS = "  make dev "

Person = Callable[..., "Rendered"]


class Rendered:
    """What a render by the cookiecutter command left, and what it said."""

    def __init__(self, path: Path, said: str, environment: dict[str, str]) -> None:
        self.path, self.said, self.environment = path, said, environment

    @property
    def link(self) -> Any:
        return json.loads((self.path / ".cruft.json").read_text(encoding="utf-8"))

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


@pytest.fixture(scope="session")
def bare(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template with little more than what its hooks look at: less to render. Not to be changed."""
    folder = Path(shutil.copytree(small, tmp_path_factory.mktemp("bare") / "deployable-service"))
    for name in (".github", "tests"):
        shutil.rmtree(folder / PROJECT / name)
    for module in (folder / PACKAGE).glob("*.py"):
        module.unlink()
    commit(folder, "Leave out what the hooks don't look at")
    return folder


@pytest.fixture
def person(tmp_path: Path, bare: Path, cookiecutter: Command) -> Person:
    """A person with a HOME of their own, the tools named, and git told who commits.

    The template is the bare one, unless another one is given: the hooks do the same to it.
    """

    def render(
        *tools: str,
        source: str | Path = bare,
        within: str = "work",
        output: str = ".",
        options: tuple[str, ...] = (),
        **changes: str,
    ) -> Rendered:
        home, programs, work = tmp_path / "home", tmp_path / "programs", tmp_path / within
        for folder in (home, programs, work):
            folder.mkdir(parents=True, exist_ok=True)
        for name in tools:
            (programs / name).unlink(missing_ok=True)
            (programs / name).symlink_to(tool(name).resolve())
        (programs / "python3").unlink(missing_ok=True)
        (programs / "python3").symlink_to(Path(sys.executable).resolve())
        (home / "git").write_text("[user]\nname = Zoë\nemail = zoe@example.org\n", encoding="utf-8")
        cache = {"UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))}
        git = {"GIT_CONFIG_GLOBAL": str(home / "git"), "GIT_CONFIG_NOSYSTEM": "1"}
        environment = clean_environment(**{"HOME": str(home), "PATH": str(programs)} | cache | git | changes)
        environment.pop("EMAIL", None)
        command = ("--no-input", "--output-dir", output, source, *options)
        done = cookiecutter(command, work, environment | {"PWD": str(work)})
        assert done.returncode == 0, done.stdout + done.stderr
        project = work / output / "my-service"
        assert (project / "pyproject.toml").is_file()
        assert "Traceback" not in done.stdout + done.stderr
        return Rendered(project, done.stdout, environment)

    return render


def test_with_everything_the_render_and_the_lock_are_committed(person: Person, template: Path) -> None:
    rendered = person("git", "uv", source=template)
    assert "Skipped" not in rendered.said
    assert NEXT_STEPS in rendered.said
    assert rendered.git("log", "--format=%an: %s") == (
        "Zoë: Lock the dependencies\nZoë: Render the service from its template"
    )
    assert rendered.git("branch", "--show-current") == "main"
    assert rendered.git("diff", "--name-only", "HEAD~1") == "uv.lock"
    assert rendered.git("status", "--porcelain", "--ignored") == ""


@pytest.mark.parametrize("output", [".", "elsewhere"])
def test_a_folder_is_linked_by_its_whole_path_and_said_to_be_one(
    person: Person, bare: Path, tmp_path: Path, output: str
) -> None:
    rendered = person("git", source=os.path.relpath(bare, tmp_path / "work"), output=output)
    assert rendered.link["template"] == str(bare)
    assert f"Linked to {bare}, a folder that others don't have." in rendered.said


@pytest.mark.parametrize(
    ("typed", "cloned", "linked"),
    [
        (
            "gh:org/deployable-service",
            "https://github.com/org/deployable-service.git",
            "https://github.com/org/deployable-service.git",
        ),
        (
            "https://zoe:hunter2@git.example/deployable-service",
            "https://zoe:hunter2@git.example/deployable-service",
            "https://git.example/deployable-service",
        ),
        (
            "ssh://git:hunter2@git.example/deployable-service",
            "ssh://git:hunter2@git.example/deployable-service",
            "ssh://git@git.example/deployable-service",
        ),
        (
            "git@git.example:org/deployable-service.git",
            "git@git.example:org/deployable-service.git",
            "git@git.example:org/deployable-service.git",
        ),
    ],
)
def test_a_url_is_linked_in_full_and_without_a_password(
    person: Person, bare: Path, tmp_path: Path, typed: str, cloned: str, linked: str
) -> None:
    config = tmp_path / "config"
    config.write_text(f'[url "{bare.as_uri()}"]\ninsteadOf = {cloned}\n', encoding="utf-8")
    rendered = person("git", source=typed, GIT_CONFIG_GLOBAL=str(config))
    assert rendered.link["template"] == rendered.link["context"]["cookiecutter"]["_template"] == linked
    assert rendered.link["commit"] == git(bare, "rev-parse", "HEAD")
    assert "hunter2" not in (rendered.path / ".cruft.json").read_text(encoding="utf-8")
    assert "Linked to" not in rendered.said


def test_changes_that_are_not_committed_are_no_version_to_link_to(
    person: Person, bare: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(bare, tmp_path / "changed")
    (changed / "{{cookiecutter.project_slug}}" / "new").touch()
    rendered = person("git", source=changed)
    assert "has changes that are not committed" in rendered.said
    assert "Later: commit them and render again" in rendered.said
    assert not (rendered.path / ".cruft.json").exists()


def test_what_git_status_hides_is_no_version_to_link_to_either(
    person: Person, bare: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(bare, tmp_path / "changed")
    (changed / PROJECT / "new").touch()
    hidden = tmp_path / "hidden"
    hidden.write_text("[status]\nshowUntrackedFiles = no\n", encoding="utf-8")
    rendered = person("git", source=changed, GIT_CONFIG_GLOBAL=str(hidden))
    assert "has changes that are not committed" in rendered.said
    # A copy in a folder that another repository ignores.
    shutil.rmtree(changed / ".git")
    (tmp_path / ".gitignore").write_text("/changed/\n", encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "--quiet", "--message", "Be another repository")
    rendered = person("git", source=changed, output="two")
    assert "'changed/cookiecutter.json' exists on disk, but not in 'HEAD'" in rendered.said
    assert not (rendered.path / ".cruft.json").exists()


def test_a_template_that_is_no_repository_has_no_version_to_link_to(
    person: Person, bare: Path, tmp_path: Path
) -> None:
    plain = shutil.copytree(bare, tmp_path / "plain")
    shutil.rmtree(plain / ".git")
    rendered = person("git", source=plain)
    assert f"{plain} is not a git repository, so there is no version to link to" in rendered.said
    assert not (rendered.path / ".cruft.json").exists()


def test_the_link_that_could_not_be_made_is_made_by_the_command_that_is_printed(
    person: Person, bare: Path, tmp_path: Path
) -> None:
    archive = shutil.copytree(bare, tmp_path / "archive")
    shutil.rmtree(archive / ".git")
    answers = {
        "project_description": 'Zoë\'s "books" & $HOME.',
        "web_framework": "fastapi",
        "deploy_to": "systemd",
    }
    given = tuple(f"{name}={value}" for name, value in answers.items())
    rendered = person("git", source=archive, options=given)
    (line,) = (line for line in rendered.said.splitlines() if "uvx cruft link" in line)
    words = shlex.split(line.partition("Later: uvx ")[2])
    commit = git(bare, "rev-parse", "HEAD")
    known = {"TEMPLATE_URL": bare.as_uri(), "VERSION": commit}
    command = (sys.executable, "-m", *(known.get(word, word) for word in words))
    subprocess.run(
        command, cwd=rendered.path, env=rendered.environment | {"PATH": os.environ["PATH"]}, check=True
    )
    assert rendered.link["commit"] == commit
    assert rendered.link["context"]["cookiecutter"].items() >= answers.items()


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--overwrite-if-exists",), ("-f", "--skip-if-file-exists")])
def test_a_link_that_is_there_stays_since_files_that_are_there_may_be_older(
    person: Person, bare: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    source = tmp_path / "template"
    git(tmp_path, "clone", "--quiet", str(bare), str(source))
    before = person("git", source=source)
    link = (before.path / ".cruft.json").read_bytes()
    with (source / "{{cookiecutter.project_slug}}/Dockerfile").open("a", encoding="utf-8") as dockerfile:
        dockerfile.write("# Later.\n")
    git(source, "commit", "--quiet", "--all", "--message", "Later")
    after = person("git", source=source, options=options)
    assert "the link to the template, because there is a .cruft.json" in after.said
    assert "Later: make update" in after.said
    assert "the first commit, because this folder has a history already" in after.said
    assert (after.path / ".cruft.json").read_bytes() == link


def test_a_template_in_a_folder_of_a_repository_is_linked_with_it(
    person: Person, bare: Path, tmp_path: Path
) -> None:
    inner = shutil.copytree(bare, tmp_path / "mono" / "template")
    shutil.rmtree(inner / ".git")
    for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "All")):
        git(inner.parent, *command)
    rendered = person("git", source=inner)
    assert (rendered.link["template"], rendered.link["directory"]) == (str(inner.parent), "template")


def test_without_tools_the_render_is_there_and_says_what_to_do_later(person: Person) -> None:
    rendered = person()
    assert "the link to the template, because git is not on the PATH" in rendered.said
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
    assert "GitHub reads .github at the root of a repository alone: https://" in rendered.said
    assert not rendered.has_history


def test_over_a_project_that_is_there_only_its_own_files_are_made(person: Person, tmp_path: Path) -> None:
    project = tmp_path / "work" / "my-service"
    ours = {
        "deploy/swarm/stack.override.yaml": "ours: 1\n",
        "deploy/swarm/stack.yaml": "ours: 2\n",
        "deploy/systemd/notes/on-call.md": "ours\n",
        "deploy/nomad/job.hcl": "ours\n",
    }
    for name, text in ours.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    subprocess.run((tool("git"), "init", "--quiet", project), env=clean_environment(), check=True)
    rendered = person("git", options=("--overwrite-if-exists",))
    assert {name: (project / name).read_text() for name in ours} == ours
    assert (project / "deploy" / "kubernetes" / "base" / "deployment.yaml").is_file()
    assert "the first commit, because this folder has a history already" in rendered.said
    assert not [path for path in (project / "deploy").rglob("*") if path.is_dir() and not [*path.iterdir()]]


def test_an_archive_of_the_template_gives_programs_that_run(
    person: Person, bare: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "deployable-service.zip"
    git(bare, "archive", "--prefix=deployable-service/", f"--output={archive}", "HEAD")
    rendered = person(source=archive, options=("deploy_to=systemd",))
    assert os.access(rendered.path / "deploy" / "systemd" / "rolling-restart", os.X_OK)


@pytest.mark.parametrize(
    "reader",
    [
        "a reader that goes away",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("/dev/full", "a closed stream")),
    ],
)
def test_words_that_nobody_reads_delete_no_project(bare: Path, tmp_path: Path, reader: str) -> None:
    command = (sys.executable, "-m", "cookiecutter", "--no-input", "--default-config", str(bare))
    environment = clean_environment(HOME=str(tmp_path), PATH=str(tmp_path))
    if reader == "a closed stream":
        shell = ("/bin/sh", "-c", 'exec "$@" >&-', "sh")
        done = subprocess.run((*shell, *command), cwd=tmp_path, env=environment, timeout=120)
    elif reader == "/dev/full":
        with Path(reader).open("w") as full:
            done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=full, timeout=120)
    else:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=write, timeout=120)
        os.close(write)
    assert done.returncode == 0
    assert (tmp_path / "my-service" / "pyproject.toml").is_file()


WORKSPACE = """[project]
name = "platform"
version = "1"
requires-python = ">=3.11"
[tool.uv.workspace]
"""


@pytest.mark.parametrize(
    ("table", "within"),
    [('members = ["services/*"]', "services"), ('members = ["a", "teams/**"]\nexclude = ["x"]', "teams/red")],
)
def test_a_member_of_a_workspace_is_not_locked_and_nothing_above_it_changes(
    person: Person, tmp_path: Path, table: str, within: str
) -> None:
    root = tmp_path / "platform"
    root.mkdir()
    (root / "pyproject.toml").write_text(WORKSPACE + table)
    rendered = person("git", "uv", within=f"platform/{within}")
    assert f"uv.lock, because this folder is a member of the uv workspace {root}" in rendered.said
    assert f'Later: add "{within}/my-service" to `exclude` in [tool.uv.workspace]' in rendered.said
    assert not rendered.is_locked
    assert {path.name for path in root.iterdir()} == {"pyproject.toml", within.partition("/")[0]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "table", ['members = ["libraries/*"]', 'members = ["services/*"]\nexclude = ["services/my-*"]']
)
def test_beside_a_workspace_the_project_has_a_lock_of_its_own(
    person: Person, tmp_path: Path, table: str
) -> None:
    root = tmp_path / "platform"
    (root / "libraries").mkdir(parents=True)
    (root / "pyproject.toml").write_text(WORKSPACE + table)
    assert person("git", "uv", within="platform/services").is_locked
    assert not (root / "uv.lock").exists()


@pytest.mark.parametrize("name", ["UV_PROJECT", "UV_WORKING_DIR"])
def test_a_project_that_the_environment_names_for_uv_is_left_alone(
    person: Person, tmp_path: Path, name: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1"\n')
    assert person("git", "uv", UV_FROZEN="1", **{name: str(other)}).is_locked
    assert [path.name for path in other.iterdir()] == ["pyproject.toml"]


def test_called_from_a_git_hook_the_other_repository_is_left_alone(person: Person, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run((tool("git"), "init", "--quiet", other), env=clean_environment(), check=True)
    rendered = person("git", GIT_DIR=str(other / ".git"), GIT_INDEX_FILE=str(other / ".git" / "index"))
    del rendered.environment["GIT_DIR"], rendered.environment["GIT_INDEX_FILE"]
    assert rendered.git("log", "--format=%s") == "Render the service from its template"
    assert not (other / ".git" / "index").exists()


def test_without_an_identity_nothing_is_committed(person: Person) -> None:
    rendered = person("git", GIT_CONFIG_GLOBAL=os.devnull)
    assert "git config --global user.email" in rendered.said
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


def test_a_file_that_cannot_be_written_is_said_and_deletes_no_project(person: Person, tmp_path: Path) -> None:
    project = tmp_path / "work" / "my-service"
    project.mkdir(parents=True)
    (project / ".cruft.json").symlink_to(tmp_path / "gone" / "link")
    rendered = person("git", options=("--overwrite-if-exists",))
    assert "Skipped: the link to the template, because [Errno 2] No such file" in rendered.said
    assert NEXT_STEPS in rendered.said


def test_ctrl_c_while_it_locks_ends_that_step_alone(bare: Path, tmp_path: Path) -> None:
    programs, said = tmp_path / "programs", tmp_path / "said"
    programs.mkdir()
    (programs / "uv").write_text(f"#!/bin/sh\n: > {tmp_path}/locks\nexec /bin/sleep 100\n", encoding="utf-8")
    (programs / "uv").chmod(0o755)
    # As in a terminal, where Ctrl-C reaches all of them.
    with (
        said.open("w") as output,
        subprocess.Popen(
            (sys.executable, "-m", "cookiecutter", "--no-input", bare),
            cwd=tmp_path,
            env=clean_environment(HOME=str(tmp_path), PATH=str(programs)),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        wait_for((tmp_path / "locks").exists, "the lock", 60)
        os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: NEXT_STEPS in said.read_text(), "what is next", 30)
    assert "uv.lock, because uv was interrupted.\n  Later: uv lock\n" in said.read_text()
    assert "KeyboardInterrupt" not in said.read_text()
    assert (tmp_path / "my-service" / "pyproject.toml").is_file()


def test_cruft_renders_without_the_extra_steps(
    bare: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    environment = clean_environment(HOME=str(tmp_path), GIT_CONFIG_GLOBAL=os.devnull)
    capfd.readouterr()
    create = (sys.executable, "-m", "cruft", "create", "--no-input", "--default-config", str(bare))
    subprocess.run(create, cwd=work, env=environment, check=True)
    said = capfd.readouterr()
    project = work / "my-service"
    assert said.out == ""
    assert not (project / ".git").exists()
    assert not (project / "uv.lock").exists()
    assert [path.name for path in (project / "deploy").iterdir()] == ["kubernetes"]
    assert json.loads((project / ".cruft.json").read_text(encoding="utf-8"))["commit"]
