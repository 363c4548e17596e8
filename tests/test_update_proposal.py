"""What the service's workflow does: one pull request, and nobody's work is lost on its branch.

GitHub's own part can't be had here, so `gh` is a stand-in; git, its remote and cruft are real.
"""

import base64
import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.project import git
from kit.service import clean_environment
from kit.updates import (
    PROJECT,
    commit,
    link,
    next_release,
    release,
    relink,
    replace,
    update,
    with_gh,
    without_environments,
)
from kit.workflows import steps

pytestmark = pytest.mark.slow
BRANCH = "template-update"
# Whom the helper `update` commits as.
BOT = "zoe@example.org"


def a_line_more(folder: Path) -> None:
    replace(folder / PROJECT / "Dockerfile", "STOPSIGNAL", "# Later.\nSTOPSIGNAL")


class Fleet:
    """A service with a remote, whose workflow runs in a fresh clone each time, and its template."""

    def __init__(self, small: Path, service: Path, folder: Path) -> None:
        self.folder, self.remote = folder, folder / "remote.git"
        self.template = next_release(small, folder / "later", a_line_more)
        self.path = without_environments(folder / "programs")
        self._calls = with_gh(folder / "programs")
        relink(service, template=str(self.template))
        git(folder, "clone", "--quiet", "--bare", str(service), str(self.remote))
        self._clones = 0

    def clone(self, branch: str = "main") -> Path:
        self._clones += 1
        clone = self.folder / f"clone-{self._clones}"
        git(self.folder, "clone", "--quiet", "--branch", branch, str(self.remote), str(clone))
        return clone

    def monday(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self._calls.unlink(missing_ok=True)
        options = ("--propose", "--no-suite", *options)
        return update(self.clone(), *options, PATH=self.path, **environment)

    def later(self) -> None:
        replace(self.template / PROJECT / "Dockerfile", "STOPSIGNAL", "# Later still.\nSTOPSIGNAL")
        release(self.template, "v1.2.0", "- It came later still.")

    @property
    def said(self) -> str:
        """What gh was called with, the texts of pull requests included."""
        return self._calls.read_text(encoding="utf-8") if self._calls.exists() else ""

    @property
    def calls(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith(("pr create", "pr edit"))]

    @property
    def tip(self) -> str:
        return git(self.remote, "rev-parse", BRANCH)

    def subjects(self) -> list[str]:
        return git(self.remote, "log", "--format=%s", f"main..{BRANCH}").splitlines()


@pytest.fixture
def fleet(small: Path, newborn: Path, tmp_path: Path) -> Fleet:
    return Fleet(small, newborn, tmp_path)


def test_one_pull_request_is_opened_and_renewed(fleet: Fleet) -> None:
    done = fleet.monday()
    assert done.returncode == 0, done.stdout
    assert fleet.subjects() == ["Update to v1.1.0 of the template"]
    assert fleet.calls == [
        f"pr create --head {BRANCH} --title Update to v1.1.0 of the template --body The suite was not run."
    ]
    assert "- It came later: größer → 天気.\n" in done.stdout

    fleet.later()
    done = fleet.monday(OPEN="17")
    assert done.returncode == 0, done.stdout
    assert fleet.subjects() == ["Update to v1.2.0 of the template"]
    assert fleet.calls == [
        "pr edit 17 --title Update to v1.2.0 of the template --body The suite was not run."
    ]


def test_hooks_of_the_clone_a_long_changelog_and_a_fork_are_in_nobodys_way(fleet: Fleet) -> None:
    """CI of the pull request judges the update, and a fork may have a branch of the same name.

    What the suite leaves behind is no part of it.
    """
    clone = fleet.clone()
    hooks = fleet.folder / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "commit-msg", "pre-push", "post-checkout"):
        (hooks / name).write_text("#!/bin/sh\necho refused >&2\nexit 1\n", encoding="utf-8")
        (hooks / name).chmod(0o755)
    git(clone, "config", "core.hooksPath", str(hooks))
    with (fleet.template / "CHANGELOG.md").open("a", encoding="utf-8") as changelog:
        changelog.write("- One more line of what came later.\n" * 4000)
    release(fleet.template, "v1.2.0", "- Much.")
    left = {"MEANWHILE": "touch left-by-a-test uv.lock"}
    done = update(clone, "--propose", "--no-suite", PATH=fleet.path, OPEN="17", FORKED="true", **left)
    assert done.returncode == 0, done.stdout[-2000:]
    assert [call.split(" --title")[0] for call in fleet.calls] == [f"pr create --head {BRANCH}"]
    changed = git(clone, "diff", "--name-only", f"main...origin/{BRANCH}").splitlines()
    assert changed == [".cruft.json", "Dockerfile", "uv.lock"]
    assert "(The rest is in CHANGELOG.md of the template.)" in fleet.said
    assert 50_000 < len(fleet.said) < 65_536


def test_what_can_be_neither_signed_nor_pushed_leaves_the_branch_that_was_checked_out(fleet: Fleet) -> None:
    clone = fleet.clone()
    signing = {"GIT_CONFIG_KEY_0": "commit.gpgSign", "GIT_CONFIG_VALUE_0": "true", "GIT_CONFIG_COUNT": "2"}
    no_program = {"GIT_CONFIG_KEY_1": "gpg.program", "GIT_CONFIG_VALUE_1": "false"}
    done = update(clone, "--propose", "--no-suite", PATH=fleet.path, **signing, **no_program)
    assert done.returncode != 0
    assert git(clone, "branch", "--show-current") == "main"
    git(clone, "reset", "--quiet", "--hard")
    (fleet.remote / "hooks").mkdir(exist_ok=True)
    (fleet.remote / "hooks/pre-receive").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (fleet.remote / "hooks/pre-receive").chmod(0o755)
    done = update(clone, "--propose", "--no-suite", PATH=fleet.path)
    assert done.returncode != 0
    assert "A token that may write contents pushes this." in done.stdout
    assert git(clone, "status", "--porcelain", "--branch") == "## main...origin/main"


def test_nothing_is_pushed_when_nothing_has_changed(fleet: Fleet) -> None:
    fleet.monday()
    before = fleet.tip
    # The service has gone on meanwhile, which changes nothing in what the update changes.
    main = fleet.clone()
    (main / "notes.md").write_text("Ours.\n", encoding="utf-8")
    commit(main, "Take notes")
    git(main, "push", "--quiet")
    done = fleet.monday(OPEN="17")
    assert done.returncode == 0, done.stdout
    assert f"{BRANCH} has this update already: nothing was pushed." in done.stdout
    assert (fleet.tip, fleet.calls) == (before, [])
    # The pull request could not be opened the first time: now it is.
    done = fleet.monday()
    assert done.returncode == 0, done.stdout
    assert (fleet.tip, len(fleet.calls)) == (before, 1)


def a_commit(clone: Path) -> None:
    (clone / "done.md").write_text("What the changelog asks.\n", encoding="utf-8")
    git(clone, "add", "done.md")
    git(clone, "-c", "user.email=ada@example.org", "commit", "--quiet", "--message", "Do what it asks")


def an_amended_commit(clone: Path) -> None:
    (clone / "done.md").write_text("What the changelog asks.\n", encoding="utf-8")
    git(clone, "add", "done.md")
    git(clone, "-c", "user.email=ada@example.org", "commit", "--quiet", "--amend", "--no-edit")


def a_merge(clone: Path) -> None:
    git(clone, "switch", "--quiet", "main")
    (clone / "notes.md").touch()
    commit(clone, "Take notes")
    git(clone, "push", "--quiet", "origin", "main")
    git(clone, "switch", "--quiet", BRANCH)
    git(clone, "-c", "user.email=ada@example.org", "merge", "--quiet", "--no-edit", "main")


def test_a_branch_with_work_of_others_is_left_alone(fleet: Fleet) -> None:
    fleet.monday()
    own = fleet.tip
    fleet.later()
    for work in (a_commit, an_amended_commit, a_merge):
        clone = fleet.clone(BRANCH)
        git(clone, "reset", "--quiet", "--hard", own)
        work(clone)
        git(clone, "push", "--quiet", "--force", "origin", BRANCH)
        before = fleet.tip
        done = fleet.monday(OPEN="17")
        assert done.returncode == 0, done.stdout
        assert "Pull request 17 has commits of Zoë <ada@example.org>, so" in done.stdout
        assert (fleet.tip, fleet.calls) == (before, [])
    # No pull request is open for it: somebody has to look.
    done = fleet.monday()
    assert done.returncode != 0
    assert "The branch has commits of Zoë <ada@example.org>, so" in done.stdout
    assert (fleet.tip, fleet.calls) == (before, [])


def test_work_that_comes_while_the_update_is_made_is_not_pushed_over(fleet: Fleet) -> None:
    clone = fleet.clone()
    git(clone, "switch", "--quiet", "--create", BRANCH)
    a_commit(clone)
    done = fleet.monday(MEANWHILE=f"git -C {clone} push --quiet origin {BRANCH}")
    assert done.returncode != 0
    assert "permission `workflows`" in done.stdout
    assert "If the branch has changed meanwhile, run it once more." in done.stdout
    assert fleet.subjects() == ["Do what it asks"]
    assert fleet.calls == []


def test_services_of_one_repository_have_each_a_branch_of_its_own(fleet: Fleet) -> None:
    root = fleet.folder / "mono"
    names = ("services/books", "équipe bleue/lending")
    for name in names:
        shutil.copytree(fleet.clone(), root / name, ignore=shutil.ignore_patterns(".git"))
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "All")
    git(fleet.folder, "clone", "--quiet", "--bare", str(root), "shared.git")
    git(root, "remote", "add", "origin", str(fleet.folder / "shared.git"))
    for name in names:
        done = update(root / name, "--propose", "--no-suite", PATH=fleet.path)
        assert done.returncode == 0, done.stdout
        assert git(root, "status", "--porcelain") == ""
    for name, branch in zip(names, ("services-books", "équipe-bleue-lending"), strict=True):
        changed = git(root, "diff", "-z", "--name-only", f"main...origin/{BRANCH}-{branch}").split("\0")
        assert f"{name}/Dockerfile" in changed
        assert not [path for path in changed if path and not path.startswith(f"{name}/")]
        assert f"pr create --head {BRANCH}-{branch} " in "".join(fleet.calls)


class WithToken(http.server.SimpleHTTPRequestHandler):
    """Files of a git repository, for those who send the token."""

    def do_GET(self) -> None:
        if self.headers["Authorization"] == f"Basic {base64.b64encode(b'x:token').decode()}":
            super().do_GET()
        else:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def host(fleet: Fleet) -> Iterator[str]:
    """The host of a private template, org/template, that is read with a token only."""
    served = fleet.folder / "served/org/template"
    git(fleet.folder, "clone", "--quiet", "--bare", str(fleet.template), f"{served}.git")
    git(Path(f"{served}.git"), "update-server-info")
    handler = functools.partial(WithToken, directory=str(fleet.folder / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_workflow_reads_a_template_with_an_ssh_address_by_its_token(fleet: Fleet, host: str) -> None:
    address, other = f"git@{host}:org/template.git", f"ssh://git@{host}/org/template.git"
    clone = fleet.clone()
    relink(clone, template=address)
    git(clone, "push", "--quiet")
    (step,) = (step for step in steps(clone, "template-update", "update") if "make update" in step.run)
    environment = clean_environment(
        GIT_CONFIG_GLOBAL=str(fleet.folder / "config"),
        GIT_SSH_COMMAND="false",
        GIT_TERMINAL_PROMPT="0",
        GITHUB_SERVER_URL=f"http://{host}",
        GH_TOKEN="token",
        PATH=fleet.path,
    )
    for command in (step.run.replace("--propose", "'--propose --no-suite'"), f"git ls-remote {other}"):
        done = subprocess.run(
            ("bash", "-e", "-c", command),
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout
    assert link(clone)["template"] == address
    assert fleet.subjects() == ["Update to v1.1.0 of the template"]
    assert git(fleet.remote, "log", "--format=%an", "--max-count=1", BRANCH) == "github-actions[bot]"
