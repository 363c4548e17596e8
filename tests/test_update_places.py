"""Updates on other people's machines: their git settings, locales, work trees, links and lists of files."""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from kit.project import git
from kit.tools import missing
from kit.updates import (
    PROJECT,
    commit,
    contents,
    link,
    next_release,
    relink,
    replace,
    update,
    without_environments,
)
from update_service import remove
from updates.commands import StoppedError

pytestmark = pytest.mark.slow
URL = "https://git.example/template.git"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return without_environments(tmp_path / "programs")


def a_line_more(folder: Path) -> None:
    replace(folder / PROJECT / "Dockerfile", "STOPSIGNAL", "# Later.\nSTOPSIGNAL")


@pytest.fixture
def later(small: Path, tmp_path: Path) -> Path:
    return next_release(small, tmp_path / "later", a_line_more)


@pytest.fixture
def service(newborn: Path, later: Path) -> Path:
    """A service for which there is a release with one line more in its Dockerfile."""
    relink(newborn, template=str(later))
    return newborn


def has_the_line(service: Path) -> bool:
    return "# Later.\n" in (service / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "place", ["GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS", "includeIf", "the repository"]
)
def test_git_settings_count_for_the_template_wherever_they_stand(
    service: Path, later: Path, path: str, tmp_path: Path, place: str
) -> None:
    key = f"url.{later}.insteadOf"
    environment = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    match place:
        case "GIT_CONFIG_COUNT":
            environment |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": key, "GIT_CONFIG_VALUE_0": URL}
        case "GIT_CONFIG_PARAMETERS":
            environment |= {"GIT_CONFIG_PARAMETERS": f"'{key}'='{URL}'"}
        case "includeIf":
            (tmp_path / "global").write_text(
                f'[includeIf "gitdir:{tmp_path}/"]\npath = work\n', encoding="utf-8"
            )
            (tmp_path / "work").write_text(f'[url "{later}"]\ninsteadOf = {URL}\n', encoding="utf-8")
            environment |= {"GIT_CONFIG_GLOBAL": str(tmp_path / "global")}
        case "the repository":
            git(service, "config", key, URL)
    relink(service, template=URL)
    done = update(service, "--no-suite", "--checkout", "v1.0.0", PATH=path, **environment)
    assert (done.returncode, "Nothing to do" in done.stdout) == (0, True), done.stdout
    if place == "GIT_CONFIG_COUNT":
        done = update(service, "--no-suite", PATH=path, **environment)
        assert done.returncode == 0, done.stdout
        assert has_the_line(service)
        assert link(service)["template"] == link(service)["context"]["cookiecutter"]["_template"] == URL
    # The template's history was there for the update only.
    assert git(service, "for-each-ref", "--format=%(refname)") == "refs/heads/main"


SETTINGS = """
[diff]
external = /bin/true
context = 0
noprefix = true
[color]
ui = always
[log]
showSignature = true
[status]
showUntrackedFiles = no
short = true
branch = true
[column]
ui = always
[merge]
conflictStyle = diff3
[core]
abbrev = 4
autocrlf = true
"""


def test_what_git_shows_to_people_is_not_read(service: Path, later: Path, path: str, tmp_path: Path) -> None:
    # No release: whoever wants it names it.
    git(later, "tag", "v1.1.1-rc.1")
    (tmp_path / "config").write_text(SETTINGS, encoding="utf-8")
    done = update(service, "--no-suite", PATH=path, GIT_CONFIG_GLOBAL=str(tmp_path / "config"))
    assert done.returncode == 0, done.stdout
    assert "- It came later: größer → 天気.\n" in done.stdout
    assert has_the_line(service)
    assert git(service, "diff", "--name-only", "HEAD").splitlines() == [".cruft.json", "Dockerfile"]
    assert link(service)["checkout"] == "v1.1.0"


def test_a_repository_or_project_that_the_environment_names_is_left_alone(
    service: Path, path: str, tmp_path: Path
) -> None:
    """A hook or an alias of git that calls the update has such variables, and so have machines of CI."""
    git(tmp_path, "init", "--quiet", "other")
    before = contents(service)
    names = {"UV_FROZEN": "1", "UV_LOCKED": "1", "UV_PROJECT": str(tmp_path / "other")}
    note = (
        f"env | grep -E '^(GIT_(DIR|WORK_TREE|INDEX_FILE)|UV_(FROZEN|LOCKED|PROJECT))=' > {tmp_path}/left; :"
    )
    for repository in (tmp_path / "other", service):
        git(service, "reset", "--quiet", "--hard")
        there = repository / ".git"
        names |= {"GIT_DIR": str(there), "GIT_WORK_TREE": str(repository), "GIT_INDEX_FILE": f"{there}/index"}
        done = update(service, "--no-suite", PATH=path, MEANWHILE=note, **names)
        assert done.returncode == 0, done.stdout
        assert {name for name, text in contents(service).items() if before.get(name) != text} == {
            ".cruft.json",
            "Dockerfile",
        }
        assert git(service, "log", "--format=%s", "--max-count=1") == "Change the link"
    assert not (tmp_path / "left").read_text()
    assert git(tmp_path / "other", "for-each-ref") == git(tmp_path / "other", "ls-files") == ""


def test_a_service_of_another_user_that_git_was_told_to_trust(service: Path, path: str) -> None:
    if os.geteuid() != 0:
        # No tool is missing: most people are not root.
        pytest.skip("only root can give files to another user")
    for each in (service, *service.rglob("*")):
        os.chown(each, 12345, 12345, follow_symlinks=False)
    trust = {"GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": str(service)}
    done = update(service, "--no-suite", PATH=path, GIT_CONFIG_COUNT="1", **trust)
    assert done.returncode == 0, done.stdout
    assert has_the_line(service)


def test_an_update_that_is_interrupted_says_so_and_leaves_no_refs_or_temporary_files(
    service: Path, path: str, tmp_path: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    stop = {"MEANWHILE": "kill -TERM $PPID", "TMPDIR": str(tmp_path / "temporary")}
    done = update(service, "--no-suite", PATH=path, **stop)
    assert done.returncode != 0
    assert "Interrupted. `git status` shows what is done; `git reset --hard` takes it back." in done.stdout
    assert "Traceback" not in done.stdout
    assert git(service, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert [*(tmp_path / "temporary").iterdir()] == []
    git(service, "reset", "--quiet", "--hard")
    assert git(service, "status", "--porcelain") == ""


def test_a_locale_that_lacks_letters_is_no_hindrance(service: Path, path: str, tmp_path: Path) -> None:
    if not shutil.which("localedef") or not Path("/usr/share/i18n/locales/en_US").exists():
        missing("no locale can be made: localedef and /usr/share/i18n are missing")
    latin = ("localedef", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / "en_US.ISO-8859-1")
    subprocess.run(latin, check=True, capture_output=True)
    context = link(service)["context"]
    context["cookiecutter"] |= {"project_name": "Größe 天気", "project_description": "Сервис"}
    (service / "größe-天気.txt").touch()
    # No more than this was in the link of older versions of cruft.
    state = {name: link(service)[name] for name in ("template", "commit")} | {"context": context}
    (service / ".cruft.json").write_text(json.dumps(state), encoding="utf-8")
    commit(service, "Have letters")
    locale = {"LOCPATH": str(tmp_path), "LC_ALL": "en_US.ISO-8859-1"}
    done = update(service, "--no-suite", PATH=path, **locale)
    assert done.returncode == 0, done.stdout
    assert has_the_line(service)
    assert link(service)["context"]["cookiecutter"]["project_name"] == "Größe 天気"


def test_neither_a_home_folder_nor_a_name_of_the_user_is_needed(service: Path, path: str) -> None:
    done = update(service, "--no-suite", PATH=path, HOME=None, USER=None, LOGNAME=None)
    assert done.returncode == 0, done.stdout
    assert has_the_line(service)


def lts(folder: Path) -> None:
    """Fix something on a branch, and release something else on the main one."""
    git(folder, "switch", "--quiet", "--create", "lts")
    replace(folder / PROJECT / "compose.yaml", "init: true", "init: true # fixed")
    commit(folder, "Mend the image")
    git(folder, "switch", "--quiet", "main")
    a_line_more(folder)


@pytest.fixture
def on_lts(small: Path, newborn: Path, tmp_path: Path) -> Path:
    """A service that was rendered from a branch with a commit that the newest release does not have."""
    later = next_release(small, tmp_path / "later", lts)
    replace(newborn / "compose.yaml", "init: true", "init: true # fixed")
    relink(newborn, template=str(later), commit=git(later, "rev-parse", "lts"), checkout="lts")
    return newborn


def test_commits_that_the_new_version_lacks_are_not_taken_back_without_a_word(
    on_lts: Path, path: str
) -> None:
    done = update(on_lts, "--no-suite", PATH=path)
    assert done.returncode != 0
    assert "v1.1.0 lacks commits of the template that the service has (lts)" in done.stdout
    assert " Mend the image\nSay which version you want, with --checkout." in done.stdout
    assert git(on_lts, "status", "--porcelain") == ""

    done = update(on_lts, "--no-suite", "--checkout", "v1.1.0", PATH=path)
    assert done.returncode == 0, done.stdout
    assert "This takes back what v1.1.0 lacks" in done.stdout
    assert "# fixed\n" not in (on_lts / "compose.yaml").read_text(encoding="utf-8")


def test_a_branch_is_followed_when_it_is_named_and_a_picked_commit_is_not_missed(
    on_lts: Path, path: str, tmp_path: Path
) -> None:
    later = tmp_path / "later"
    git(later, "switch", "--quiet", "lts")
    replace(later / PROJECT / "Makefile", ".PHONY: help", ".PHONY: later help")
    commit(later, "Mend the Makefile")
    git(later, "switch", "--quiet", "main")
    done = update(on_lts, "--no-suite", "--checkout", "lts", PATH=path)
    assert done.returncode == 0, done.stdout
    assert link(on_lts)["checkout"] == "lts"
    assert not has_the_line(on_lts)
    commit(on_lts, "Update to lts")

    git(later, "cherry-pick", "lts~1", "lts")
    git(later, "tag", "v1.2.0")
    done = update(on_lts, "--no-suite", PATH=path)
    assert done.returncode == 0, done.stdout
    assert "lacks" not in done.stdout
    assert has_the_line(on_lts)
    assert "# fixed\n" in (on_lts / "compose.yaml").read_text(encoding="utf-8")


def test_what_is_not_committed_is_named_with_a_command_that_helps(service: Path, path: str) -> None:
    (service / "notes of größe.txt").touch()
    replace(service / "Makefile", ".PHONY: help", ".PHONY: ours help")
    for settings in (
        {},
        {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "status.showUntrackedFiles",
            "GIT_CONFIG_VALUE_0": "no",
        },
    ):
        done = update(service, "--no-suite", PATH=path, **settings)
        assert done.returncode != 0
        assert "not committed:\n  Makefile\n  notes of größe.txt\n" in done.stdout
        # The template's history was there for a moment only.
        assert "refs/template/" not in git(service, "for-each-ref")
    git(service, "stash", "--include-untracked")
    assert "git stash --include-untracked" in done.stdout
    # No stash takes what lies in a submodule, and no update touches it.
    git(service, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(service), "vendor/it")
    commit(service, "Have a submodule")
    (service / "vendor/it/built").touch()
    done = update(service, "--checkout", "v1.0.0", PATH=path)
    assert (done.returncode, "Nothing to do" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize("command", ["merge", "rebase", "cherry-pick", "revert"])
def test_what_git_is_in_the_middle_of_is_finished_first(service: Path, path: str, command: str) -> None:
    first = git(service, "rev-parse", "HEAD").strip()
    for branch in ("ours", "theirs"):
        git(service, "checkout", "--quiet", "-b", branch, first)
        (service / "notes.txt").write_text(branch, encoding="utf-8")
        commit(service, f"Take the notes as {branch}")
    git(service, "checkout", "--quiet", "ours")
    (service / "notes.txt").write_text("more", encoding="utf-8")
    commit(service, "Take more notes")
    arguments = ("HEAD~1",) if command == "revert" else ("theirs",)
    with pytest.raises(pytest.fail.Exception):
        git(service, command, *arguments)
    # As it was before, so that nothing is left to commit.
    git(service, "checkout", "--quiet", "HEAD", "--", "notes.txt")
    done = update(service, "--no-suite", PATH=path)
    assert (done.returncode != 0, has_the_line(service)) == (True, False), done.stdout
    assert f"A {command} is not finished" in done.stdout
    git(service, command, "--abort")
    assert update(service, "--no-suite", PATH=path).returncode == 0
    assert has_the_line(service)


def fewer_answers(folder: Path) -> None:
    a_line_more(folder)
    replace(folder / "cookiecutter.json", '["kubernetes", "swarm", "systemd"]', '["swarm", "systemd"]')


def test_an_answer_that_is_no_longer_offered_is_explained(
    small: Path, newborn: Path, path: str, tmp_path: Path
) -> None:
    relink(newborn, template=str(next_release(small, tmp_path / "later", fewer_answers)))
    done = update(newborn, "--no-suite", PATH=path)
    assert done.returncode != 0
    assert "deploy_to: v1.1.0 does not offer 'kubernetes', but swarm, systemd." in done.stdout
    assert "Traceback" not in done.stdout
    assert git(newborn, "status", "--porcelain") == ""
    done = update(newborn, "--no-suite", "--variables-to-update", '{"deploy_to": "systemd"}', PATH=path)
    assert done.returncode == 0, done.stdout
    assert (newborn / "deploy/systemd/haproxy.cfg").is_file()


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            '{"deploy_to": "nomad"}',
            "deploy_to: v1.1.0 does not offer 'nomad', but kubernetes, swarm, systemd.",
        ),
        (
            '{"deploy": "swarm", "web_framework": "flask"}',
            "deploy: v1.1.0 does not ask for it, but for project_name,",
        ),
        ("deploy_to=swarm", "--variables-to-update takes a JSON object"),
        ('["swarm"]', "--variables-to-update takes a JSON object"),
        ('{"package_name": "class"}', "is a word of the Python language"),
    ],
)
def test_answers_that_cannot_be_taken_are_explained(
    service: Path, path: str, answers: str, words: str
) -> None:
    done = update(service, "--no-suite", "--variables-to-update", answers, PATH=path)
    assert done.returncode != 0
    assert words in done.stdout
    assert "Traceback" not in done.stdout
    assert git(service, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            ".cruft.json",
            "{",
            "where the template is, or it can't be read (see above): uvx cruft link",
        ),
        (".cruft.json", '{"template": 1}', "There is no .cruft.json here that says where the template is"),
        (".cruft.json", '{"template": "TEMPLATE"}', ".cruft.json can't be used (KeyError: 'commit')"),
        ("pyproject.toml", "[tool.cruft\n", "pyproject.toml can't be read: "),
        (
            "pyproject.toml",
            '[tool.cruft]\nskip = "Dockerfile"\n',
            "`skip` in pyproject.toml has to be a list",
        ),
        ("src/my_service", "", "There is no src/my_service, which .cruft.json names."),
    ],
)
def test_files_that_cannot_be_read_are_explained(
    service: Path, later: Path, path: str, name: str, text: str, words: str
) -> None:
    if (service / name).is_dir():
        (service / name).rename(service / "src/books")
        (service / name).symlink_to("books")
    else:
        (service / name).write_text(text.replace("TEMPLATE", str(later)), encoding="utf-8")
    commit(service, "Break it")
    done = update(service, "--no-suite", PATH=path)
    assert done.returncode != 0
    assert words in done.stdout
    assert "Traceback" not in done.stdout
    assert git(service, "status", "--porcelain") == ""


def test_files_that_the_team_has_taken_over_are_left_alone_wherever_that_is_said(
    service: Path, path: str
) -> None:
    text = (service / "pyproject.toml").read_text(encoding="utf-8")
    start, _, rest = text.partition("[tool.cruft]\n")
    (service / "pyproject.toml").write_text(start + rest.partition("]\n")[2], encoding="utf-8")
    relink(service, skip=["./Dockerfile"])
    before = contents(service)
    done = update(service, "--no-suite", PATH=path)
    assert done.returncode == 0, done.stdout
    after = contents(service)
    assert {name for name in before if before[name] != after.get(name)} == {".cruft.json"}


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ("./a/b.txt", {"a/c/b.txt", "a/c/d", "e"}),
        ("a/", {"e"}),
        ("/e", {"a/b.txt", "a/c/b.txt", "a/c/d"}),
        ("a/*.txt", {"a/c/b.txt", "a/c/d", "e"}),
        ("**/b.txt", {"a/c/d", "e"}),
        ("a/c/../b.txt", {"a/c/b.txt", "a/c/d", "e"}),
        ("no/such/file", {"a/b.txt", "a/c/b.txt", "a/c/d", "e"}),
        ("../outside", {"a/b.txt", "a/c/b.txt", "a/c/d", "e"}),
        ("", {"a/b.txt", "a/c/b.txt", "a/c/d", "e"}),
    ],
)
def test_an_entry_of_skip_is_a_path_or_a_pattern_however_it_is_written(
    tmp_path: Path, skip: str, left: set[str]
) -> None:
    root = tmp_path / "root"
    for name in ("a/b.txt", "a/c/b.txt", "a/c/d", "e", "../outside"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    remove([skip], root)
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == left
    assert (tmp_path / "outside").exists()


def test_an_entry_of_skip_that_is_no_pattern_is_named(tmp_path: Path) -> None:
    # Newer versions of Python take it.
    with contextlib.suppress(StoppedError):
        remove(["src/**.py"], tmp_path)


def other_kinds(folder: Path) -> None:
    project = folder / PROJECT
    (project / ".envrc").unlink()
    shutil.rmtree(project / ".github/tools")
    for name in (".envrc/README.md", ".github/tools"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("The template's.\n", encoding="utf-8")


def test_a_file_of_the_template_may_become_a_folder_and_a_folder_a_file(
    small: Path, newborn: Path, path: str, tmp_path: Path
) -> None:
    relink(newborn, template=str(next_release(small, tmp_path / "later", other_kinds)))
    done = update(newborn, "--no-suite", PATH=path)
    assert done.returncode == 0, done.stdout
    assert (newborn / ".envrc/README.md").read_text() == (newborn / ".github/tools").read_text()


def in_folders(folder: Path) -> None:
    a_line_more(folder)
    replace(folder / PROJECT / ".github/workflows/ci.yml", "timeout-minutes: 10", "timeout-minutes: 11")
    (folder / PROJECT / "deploy/later.yaml").touch()


def test_what_a_sparse_checkout_leaves_out_is_updated_too(
    small: Path, newborn: Path, path: str, tmp_path: Path
) -> None:
    relink(newborn, template=str(next_release(small, tmp_path / "later", in_folders)))
    git(newborn, "sparse-checkout", "set", "src", "tests")
    done = update(newborn, "--no-suite", PATH=path)
    assert done.returncode == 0, done.stdout
    assert git(newborn, "diff", "--name-only", "--cached").splitlines() == [
        ".github/workflows/ci.yml",
        "Dockerfile",
        "deploy/later.yaml",
    ]


def new_files(folder: Path) -> None:
    (folder / PROJECT / "docs").mkdir()
    for name in ("docs/on-call.md", "notes.log"):
        (folder / PROJECT / name).write_text("The template's.\n", encoding="utf-8")


def test_what_is_in_the_way_of_new_files_is_named_before_anything_is_changed(
    small: Path, newborn: Path, path: str, tmp_path: Path
) -> None:
    relink(newborn, template=str(next_release(small, tmp_path / "later", new_files)))
    (newborn / "docs").write_text("Ask Ada.\n", encoding="utf-8")
    with (newborn / ".gitignore").open("a", encoding="utf-8") as ignored:
        ignored.write("*.log\n")
    commit(newborn, "Say who knows")
    # git would overwrite an ignored file without a word.
    (newborn / "notes.log").write_text("Mine.\n", encoding="utf-8")
    done = update(newborn, "--no-suite", PATH=path)
    assert done.returncode != 0
    assert "In the way of new files of the template: docs, notes.log." in done.stdout
    assert (newborn / "notes.log").read_text(encoding="utf-8") == "Mine.\n"
    assert git(newborn, "status", "--porcelain") == ""
