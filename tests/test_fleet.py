"""scripts/fleet.py over twelve services of four versions, with real git and a stand-in for gh."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fleet as program
import pytest
from kit.project import ROOT, git
from kit.service import clean_environment
from kit.updates import RELEASES, render, replace, template_with_releases
from updates.commands import StoppedError

pytestmark = pytest.mark.slow

VERSIONS = ("v1.0.0", *RELEASES)
EACH = 3


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template with its releases, of which one was withdrawn."""
    folder = template_with_releases(tmp_path_factory.mktemp("fleet") / "template")
    replace(folder / "CHANGELOG.md", "## 1.1.0", "## 1.1.0 [YANKED]")
    git(folder, "commit", "--quiet", "--all", "--message", "Withdraw 1.1.0")
    return folder


@pytest.fixture(scope="module")
def services(template: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three services of each version: copies of one render, each with a commit of its own."""
    folder, made = tmp_path_factory.mktemp("services"), list[Path]()
    source = f"git+file://{template}"
    renders = [
        render(source, folder / version, "--checkout", version, tools=("git",)) for version in VERSIONS
    ]
    for number in range(EACH * len(VERSIONS)):
        rendered = renders[number % len(VERSIONS)]
        service = Path(shutil.copytree(rendered, folder / f"service-{number}", symlinks=True))
        git(service, "commit", "--quiet", "--allow-empty", "--message", f"Be service {number}")
        made.append(service)
    return made


def fleet(
    template: Path, *arguments: str | Path, gh: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the program as the template's clone has it; without *gh* there is none."""
    path = [str(gh)] if gh else []
    return subprocess.run(
        (sys.executable, ROOT / "scripts/fleet.py", "--template", template, *arguments),
        env=clean_environment(
            PATH=os.pathsep.join([*path, os.path.defpath, os.environ["PATH"]]), **environment
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {row["service"]: row for row in json.loads(done.stdout)}


def test_who_is_behind_is_seen_at_a_glance(template: Path, services: list[Path], tmp_path: Path) -> None:
    html = tmp_path / "fleet.html"
    done = fleet(template, *services, "--html", html)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["service", "template", "days", "old", "behind", "update", "CI"]
    # Who is furthest behind comes first.
    behind = [line[-3] for line in lines[1:13]]
    assert behind == [count for count in "3210" for _ in range(EACH)]
    assert "12 services: 3 current, 9 behind; the oldest template is 0 days old" in done.stdout
    assert done.stdout.count("v1.1.0 (withdrawn)") == EACH
    text = html.read_text(encoding="utf-8")
    assert "<script" not in text
    assert re.findall(r"<tr><td>(service-\d+)", text) == [line[0] for line in lines[1:13]]
    assert text.count("<td class=bad>v1.1.0 (withdrawn)") == EACH
    assert text.count("<td class=good>0") == EACH


def test_services_are_read_from_a_list_and_from_where_git_can_clone_them(
    template: Path, services: list[Path], tmp_path: Path
) -> None:
    bare, listed = tmp_path / "served.git", tmp_path / "services.txt"
    git(tmp_path, "clone", "--quiet", "--bare", str(services[0]), str(bare))
    git(bare, "branch", "template-update")
    git(tmp_path, "clone", "--quiet", "--mirror", str(services[2]), "mirror")
    git(template, "tag", "v3.0.0-rc.1")
    # As editors on Windows save it, and with settings of a person and of a git hook.
    lines = ("# ours", str(services[1]), "", f"file://{bare}", str(tmp_path / "mirror"))
    listed.write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    settings: dict[str, Any] = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "log.showSignature",
        "GIT_CONFIG_VALUE_0": "true",
    }
    done = fleet(template, "--list", listed, "--json", GIT_DIR=str(bare), **settings)
    git(template, "tag", "--delete", "v3.0.0-rc.1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(done)
    assert found.keys() == {"service-1", "served", "mirror"}
    assert (found["mirror"]["template"], found["mirror"]["behind"]) == ("v1.2.0", 1)
    assert (found["served"]["template"], found["served"]["behind"]) == ("v1.0.0", 3)
    assert (found["served"]["update"], found["service-1"]["update"]) == ("a branch", "?")
    assert found["service-1"]["withdrawn"] is True


def test_a_service_that_can_not_be_read_is_named_with_what_to_do(
    template: Path, services: list[Path], tmp_path: Path
) -> None:
    empty, other, odd, wide = (tmp_path / name for name in ("empty", "other", "odd", "wide"))
    empty.mkdir()
    none = json.dumps({"commit": "0" * 40})
    for folder, text in (
        (other, none.encode()),
        (odd, json.dumps({"commit": "--output=made"}).encode()),
        (wide, none.encode("utf-16")),
    ):
        folder.mkdir()
        git(folder, "init", "--quiet")
        (folder / ".cruft.json").write_bytes(text)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "A")
    done = fleet(template, empty, other, odd, wide, "x" * 5000, services[3], "--json")
    assert done.returncode == 1, done.stderr
    problems = {name: row["problem"] for name, row in rows(done).items()}
    assert "no .cruft.json" in problems["empty"]
    assert "`git fetch`, or it is another template" in problems["other"]
    assert problems["odd"] == "its .cruft.json names no commit"
    assert "is not what cruft writes" in problems["wide"]
    assert "or it is no repository that can be read" in problems["x" * 5000]
    assert not (template / "made").exists()
    assert problems["service-3"] == ""
    assert "3 could not be read" in fleet(template, empty, other, odd, services[3]).stdout
    assert "name some repositories" in fleet(template).stderr


def test_a_server_that_never_answers_holds_up_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program, "LIMIT_SECONDS", 0.1)
    with pytest.raises(StoppedError, match="no answer in"):
        program.ask("sleep", "60", cwd=tmp_path)


def test_an_organisation_is_asked_by_gh(template: Path, services: list[Path], tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    names = [{"nameWithOwner": f"acme/{name}"} for name in ("old", "new", "site")]
    (tmp_path / "repositories.json").write_text(json.dumps(names))
    pull_request = "https://github.com/acme/old/pull/7"
    own = {"url": pull_request, "isCrossRepository": False}
    of_a_fork = {"url": f"{pull_request}1", "isCrossRepository": True}
    pull_requests = f"{json.dumps(of_a_fork)}, {json.dumps(own)}"
    shutil.copy(services[0] / ".cruft.json", tmp_path / "old.json")
    shutil.copy(services[3] / ".cruft.json", tmp_path / "new.json")
    (programs / "gh").write_text(
        f"""#!/bin/sh
case "$*" in
"repo list acme "*) cat {tmp_path}/repositories.json ;;
"api repos/acme/old/contents/.cruft.json "*) cat {tmp_path}/old.json ;;
"api repos/acme/new/contents/.cruft.json "*) cat {tmp_path}/new.json ;;
"pr list --repo acme/old --head template-update "*) echo '[{pull_requests}]' ;;
"pr list "*) echo '[]' ;;
"run list --repo acme/old "*) echo '[{{"status": "completed", "conclusion": "failure"}}]' ;;
"run list --repo acme/new "*) echo '[{{"status": "in_progress", "conclusion": ""}}]' ;;
*) echo "HTTP 404" >&2; exit 1 ;;
esac
""",
        encoding="utf-8",
    )
    (programs / "gh").chmod(0o755)
    html = tmp_path / "fleet.html"
    done = fleet(template, "--organisation", "acme", "--json", "--html", html, gh=programs)
    assert done.returncode == 0, done.stderr
    found = rows(done)
    assert [*found] == ["old", "new"]
    assert (found["old"]["update"], found["old"]["ci"]) == (pull_request, "failure")
    assert (found["new"]["update"], found["new"]["ci"], found["new"]["behind"]) == ("none", "in_progress", 0)
    text = html.read_text(encoding="utf-8")
    assert f"<a href='{pull_request}'>pull request</a>" in text
    assert "<td class=bad>failure" in text
    # A folder whose origin is on GitHub is asked about there, too.
    git(services[0], "remote", "add", "origin", "git@github.com:acme/old.git")
    assert rows(fleet(template, services[0], "--json", gh=programs))["service-0"]["ci"] == "failure"
