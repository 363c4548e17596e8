"""Lines with two owners, and files that one side changes while the other one drops them."""

import re
from pathlib import Path

import pytest
from kit.project import git
from kit.updates import PROJECT, commit, contents, next_release, relink, replace, update, without_environments
from updates.versions import newer

SHA = {number: f"{number:040x}" for number in range(9)}
DIGEST = {number: f"{number:064x}" for number in range(9)}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return without_environments(tmp_path / "programs")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("FROM ghcr.io/astral-sh/uv:0.13.9 AS uv", "FROM ghcr.io/astral-sh/uv:0.13.10 AS uv"),
        (
            "FROM --platform=$BUILDPLATFORM python:3.14-slim-bookworm",
            "FROM --platform=$BUILDPLATFORM python:3.15-slim-bookworm",
        ),
        ("FROM python:3.15.0rc2-slim", "FROM python:3.15.0-slim"),
        ("FROM registry:5000/a/b:1.2-alpine3.20", "FROM registry:5000/a/b:1.2-alpine3.21"),
        (f"FROM a/grype:v0.99.0@sha256:{DIGEST[2]} AS a", f"FROM a/grype:v0.100.0@sha256:{DIGEST[1]} AS a"),
        ("COPY --from=busybox:1.36 /bin/sh /", "COPY --from=busybox:1.37 /bin/sh /"),
        ('    image: "haproxy:3.2"', '    image: "haproxy:3.10"'),
        (f"- uses: actions/checkout@{SHA[7]} # v6.0.9", f"- uses: actions/checkout@{SHA[1]} # v6.0.10"),
        ("- uses: actions/checkout@v6", "- uses: actions/checkout@v7"),
        ('    "uvloop>=0.23,<0.24",', '    "uvloop>=0.23,<0.25",'),
        ('    "psycopg[binary,pool] >= 3.2.9, < 4",', '    "psycopg[binary,pool] >= 3.3, < 4",'),
        ('- run: pipx install "uv>=0.13,<0.14"', '- run: pipx install "uv>=0.13,<1"'),
        ("requires = ['hatchling==1.27rc1']", "requires = ['hatchling==1.27']"),
    ],
)
def test_of_two_versions_the_newer_one_is_taken(one: str, other: str) -> None:
    assert newer(one, other) == newer(other, one) == other


def test_of_two_ranges_that_each_raised_another_end_both_ends_are_taken() -> None:
    lower, upper = '"uvicorn[standard]>=0.55.1,<0.56"', '"uvicorn[standard]>=0.54,<0.58"'
    assert newer(lower, upper) == newer(upper, lower) == '"uvicorn[standard]>=0.55.1,<0.58"'


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"FROM a:1.0@sha256:{DIGEST[1]}", f"FROM a:1.0@sha256:{DIGEST[2]}"),
        (f"- uses: a/b@{SHA[1]} # v1.0", f"- uses: a/b@{SHA[2]} # v1.0"),
        (f"- uses: a/b@{SHA[1]}", f"- uses: a/b@{SHA[2]}"),
    ],
)
def test_of_two_digests_without_a_newer_version_none_is_taken(one: str, other: str) -> None:
    assert newer(one, other) is None
    assert newer(one, one) == one


def bumped(project: Path, uv: str, checkout: int, uvloop: str) -> None:
    """Raise what the issue of a service's Dependabot raises, in all files that have it."""
    for file in (
        project / "Dockerfile",
        project / "pyproject.toml",
        *(project / ".github/workflows").iterdir(),
    ):
        text = re.sub(r"uv:0\.13\.\d+", f"uv:{uv}", file.read_text(encoding="utf-8"))
        text = re.sub(r"checkout@\w+ # v[\d.]+", f"checkout@{SHA[checkout]} # v6.0.{checkout}", text)
        file.write_text(re.sub(r"uvloop>=0.23,<0.24", f"uvloop>=0.23,<{uvloop}", text), encoding="utf-8")


@pytest.mark.slow
def test_what_a_bot_has_raised_merges_with_what_the_template_raises(
    small: Path, newborn: Path, path: str, tmp_path: Path
) -> None:
    def later(folder: Path) -> None:
        bumped(folder / PROJECT, "0.13.11", 4, "0.26")
        tools = folder / PROJECT / ".github/tools/Dockerfile"
        tools.write_text(re.sub(r"grype:\S+", f"grype:v0.119.0@sha256:{DIGEST[1]}", tools.read_text()))
        replace(folder / PROJECT / "pyproject.toml", "msgspec>=0.22,<0.23", "msgspec>=0.23,<0.24")
        # Neighbours: a line more above what both raise, and one that is dropped below it.
        replace(folder / PROJECT / "pyproject.toml", '    "uvloop>', '    "tzdata>=2026",\n    "uvloop>')
        replace(
            folder / PROJECT / "Dockerfile",
            "FROM python:3.15-slim-trixie AS python\n",
            "FROM python:3.15-slim-forky AS python\n",
        )

    relink(newborn, template=str(next_release(small, tmp_path / "later", later)))
    bumped(newborn, "0.13.10", 3, "0.25")
    tools = newborn / ".github/tools/Dockerfile"
    tools.write_text(re.sub(r"grype:\S+", f"grype:v0.120.1@sha256:{DIGEST[2]}", tools.read_text()))
    replace(newborn / "pyproject.toml", "msgspec>=0.22,<0.23", "msgspec>=0.22,<0.25")
    commit(newborn, "Raise all there is")

    done = update(newborn, "--no-suite", PATH=path)
    assert done.returncode == 0, done.stdout
    texts = {name: text.decode() for name, text in contents(newborn).items() if b"\0" not in text}
    assert "uv:0.13.11 AS uv" in texts["Dockerfile"]
    assert "python:3.15-slim-forky" in texts["Dockerfile"]
    workflows = [text for name, text in texts.items() if name.startswith(".github/workflows/")]
    assert {line for text in workflows for line in re.findall(r"checkout@.*", text)} == {
        f"checkout@{SHA[4]} # v6.0.4"
    }
    assert '    "tzdata>=2026",\n    "uvloop>=0.23,<0.26",\n' in texts["pyproject.toml"]
    assert '"msgspec>=0.23,<0.25"' in texts["pyproject.toml"]
    assert f"grype:v0.120.1@sha256:{DIGEST[2]}" in texts[".github/tools/Dockerfile"]
    assert "the newer one stays:\n\n" in done.stdout
    assert (
        f"- `.github/tools/Dockerfile: FROM anchore/grype:v0.120.1@sha256:{DIGEST[2]} AS grype`\n"
        in done.stdout
    )
    assert not [name for name, text in texts.items() if "\n<<<<<<< " in text]


@pytest.mark.slow
def test_numbers_that_are_no_versions_and_versions_that_would_fall_stay_conflicts(
    small: Path, newborn: Path, path: str, tmp_path: Path
) -> None:
    def later(folder: Path) -> None:
        bumped(folder / PROJECT, "0.13.11", 4, "0.26")
        replace(folder / PROJECT / ".github/workflows/ci.yml", "timeout-minutes: 10", "timeout-minutes: 12")
        replace(folder / PROJECT / "compose.yaml", "127.0.0.1:8000:8000", "127.0.0.1:8080:8000")
        replace(folder / PROJECT / "Dockerfile", "python:3.15-slim-trixie AS", "python:3.15-slim-forky AS")

    relink(newborn, template=str(next_release(small, tmp_path / "later", later)))
    bumped(newborn, "0.13.10", 3, "0.25")
    replace(newborn / ".github/workflows/ci.yml", "timeout-minutes: 10", "timeout-minutes: 30")
    replace(newborn / "compose.yaml", "127.0.0.1:8000:8000", "127.0.0.1:9000:8000")
    # The template's line is another one now, with a lower version: taking it would be a step back.
    replace(newborn / "Dockerfile", "python:3.15-slim-trixie AS", "python:3.16-slim-trixie AS")
    commit(newborn, "Change the template's files")

    done = update(newborn, "--no-suite", PATH=path)
    assert done.returncode != 0
    assert re.findall(r"^  (\S+): changed here and in the template", done.stdout, flags=re.MULTILINE) == [
        ".github/workflows/ci.yml",
        "Dockerfile",
        "compose.yaml",
    ]
    # What could be settled in a file with a conflict is settled.
    text = (newborn / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert text.count("<<<<<<<") == 1
    assert {*re.findall(r"checkout@.*", text)} == {f"checkout@{SHA[4]} # v6.0.4"}
    git(newborn, "reset", "--quiet", "--hard")
    assert git(newborn, "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_file_that_the_template_drops_and_the_team_has_edited_is_named(
    small: Path, newborn: Path, path: str, tmp_path: Path
) -> None:
    def later(folder: Path) -> None:
        project = folder / PROJECT
        for name in (".envrc", ".github/tools/Dockerfile"):
            (project / name).unlink()
        (project / "compose.yaml").rename(project / "docker-compose.yaml")
        (project / "new.txt").touch()
        replace(project / "Dockerfile", "STOPSIGNAL", "# Later.\nSTOPSIGNAL")
        replace(project / "Makefile", ".PHONY: help", ".PHONY: later help")

    relink(newborn, template=str(next_release(small, tmp_path / "later", later)))
    (newborn / ".envrc").write_text("export OURS=1\n", encoding="utf-8")
    tools = newborn / ".github/tools/Dockerfile"
    tools.write_text(re.sub(r"grype:\S+", f"grype:v9.0@sha256:{DIGEST[1]}", tools.read_text()))
    replace(newborn / "compose.yaml", "init: true", "init: true  # ours")
    replace(newborn / "Makefile", ".PHONY: help", ".PHONY: ours help")
    commit(newborn, "Change the template's files")

    done = update(newborn, "--no-suite", PATH=path)
    assert done.returncode != 0
    assert "  .envrc: changed here, and the template has no such file any more" in done.stdout
    assert "  Makefile: changed here and in the template\n" in done.stdout
    assert done.stdout.count("changed here") == 2, done.stdout
    assert (newborn / ".envrc").read_text(encoding="utf-8") == "export OURS=1\n"
    assert "<<<<<<<" in (newborn / "Makefile").read_text(encoding="utf-8")
    # All else is merged as if there were no such file: nothing is left to be added, nothing is rejected.
    assert "# Later." in (newborn / "Dockerfile").read_text(encoding="utf-8")
    assert "# ours" in (newborn / "docker-compose.yaml").read_text(encoding="utf-8")
    # Only the bot had changed it.
    assert not tools.exists()
    assert git(newborn, "ls-files", "--others") == ""
    assert git(newborn, "ls-files", "new.txt") == "new.txt"
