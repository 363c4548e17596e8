"""A service through the years: real cruft, real git, three later versions of this template."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.project import CHOICES, COMBINATIONS, ROOT, as_typed, git
from kit.service import clean_environment
from kit.tools import tool
from kit.updates import (
    RELEASES,
    commit,
    contents,
    created,
    cruft,
    link,
    render,
    replace,
    shell,
    template_with_releases,
    update,
    without_environments,
)
from updates.versions import differ_in_versions_only

pytestmark = pytest.mark.slow

CI = ".github/workflows/ci.yml"
CHECKOUT = "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2"

# What a team owns, by name: the list in pyproject.toml has to say the same.
OWN = {
    ".env.example",
    ".github/CODEOWNERS",
    ".github/pull_request_template.md",
    "AGENTS.md",
    "README.md",
    "SECURITY.md",
    "deploy/kubernetes/overlays/example/kustomization.yaml",
    "deploy/kubernetes/overlays/example/route.yaml",
    "src/my_service/app.py",
    "src/my_service/config.py",
    "src/my_service/domain.py",
    "src/my_service/services.py",
    "tests/environment.py",
    "tests/test_app.py",
    "tests/test_domain.py",
    "uv.lock",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This template, as it stands in the work tree, and three releases that come after it."""
    return template_with_releases(tmp_path_factory.mktemp("later") / "deployable-service")


Render = Callable[..., Path]


@pytest.fixture(scope="module")
def fresh(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Give what cruft renders of a version, with the default answers or others."""
    made: dict[str, Path] = {}

    def fresh(version: str, **answers: str) -> Path:
        key = f"{version} {answers}"
        if key not in made:
            made[key] = created(template, tmp_path_factory.mktemp("fresh") / "home", version, **answers)
        return made[key]

    return fresh


@pytest.fixture(scope="module")
def first(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service of the first version, as plain cookiecutter leaves it; not to be changed."""
    into = tmp_path_factory.mktemp("first") / "home"
    return render(f"git+{template.as_uri()}", into, "--checkout", "v1.0.0")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The PATH of an update that has nothing to show of uv."""
    return without_environments(tmp_path / "programs")


@pytest.fixture
def born(first: Path, tmp_path: Path) -> Path:
    """The same; the test's own."""
    return Path(shutil.copytree(first, tmp_path / "born/my-service", symlinks=True))


def work(service: Path, uv: Path) -> None:
    """Do ordinary work: a route, setting, secret, dependency, service, log field and workflow."""
    package = service / "src/my_service"
    replace(
        package / "config.py",
        "@environ.config(prefix=",
        "@environ.config(frozen=True)\nclass Shelf:\n"
        '    size: int = environ.var(3, integer(1, 99), help="books that fit")\n'
        '    key: Secret = secret(optional=True, help="opens it")\n\n\n@environ.config(prefix=',
    )
    replace(
        package / "config.py",
        "    greeting: Greeting = environ.group(Greeting)\n",
        "    greeting: Greeting = environ.group(Greeting)\n    shelf: Shelf = environ.group(Shelf)\n",
    )
    replace(
        package / "services.py",
        "def register_services(",
        'class Shelf:\n    """Where books are."""\n\n    def __init__(self, size: int) -> None:\n'
        "        self.size = size\n\n\ndef register_services(",
    )
    text = (package / "services.py").read_text(encoding="utf-8").rstrip()
    text += "\n    registry.register_value(Shelf, Shelf(config.shelf.size))\n"
    (package / "services.py").write_text(text, encoding="utf-8")
    replace(package / "app.py", "import svcs\n", "import structlog\nimport svcs\n")
    replace(package / "app.py", "from .services import Clock\n", "from .services import Clock, Shelf\n")
    replace(
        package / "app.py",
        "    return Starlette(\n        routes=[\n",
        "    async def books(request: Request) -> Response:\n"
        "        structlog.contextvars.bind_contextvars(shelf=1)\n"
        "        async with svcs.Container(registry) as services:\n"
        "            shelf = await services.aget(Shelf)\n"
        "        return Response(str(shelf.size))\n\n"
        '    return Starlette(\n        routes=[\n            Route("/books", books),\n',
    )
    shutil.copy(ROOT / "tests/apps/worked_on/test_books.py", service / "tests")
    (service / ".github/workflows/own.yml").write_text(
        "name: own\non: workflow_dispatch\njobs: {}\n", encoding="utf-8"
    )
    shell(service, uv, "add", "--quiet", "aiosqlite>=0.20", "humanize>=4")
    shell(service, uv, "add", "--quiet", "--dev", "time-machine>=2")
    example = shell(
        service, uv, "run", "--quiet", "python", "-m", "my_service", "config", "--format", "dotenv"
    )
    (service / ".env.example").write_text(example, encoding="utf-8")


@pytest.fixture(scope="module")
def lending(first: Path, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a commit of ordinary work; not to be changed."""
    service = Path(shutil.copytree(first, tmp_path_factory.mktemp("lending") / "my-service", symlinks=True))
    work(service, uv)
    commit(service, "Lend books")
    return service


def same_as_fresh(service: Path, rendered: Path, version: str, own: set[str], but: frozenset[str]) -> None:
    """Assert that the template's files are there as a fresh render has them, and only the team's besides."""
    there = contents(service)
    wanted = {
        path.relative_to(rendered).as_posix(): path.read_bytes()
        for path in rendered.rglob("*")
        if path.is_file()
    }
    assert there.keys() - wanted.keys() <= own, version
    assert wanted.keys() - there.keys() <= but, version
    names = wanted.keys() & there.keys() - own - {".cruft.json", ".env.example"}
    different = [name for name in sorted(names) if there[name] != wanted[name]]
    if different and any("Bump to" in line for line in git(service, "log", "--format=%s").splitlines()):
        different = [
            name
            for name in different
            if not differ_in_versions_only(there[name].decode(), wanted[name].decode())
        ]
    assert different == [], version
    assert link(service) == json.loads(wanted[".cruft.json"]), version


@pytest.mark.parametrize("combination", ["fastapi-postgresql", "hostile", "longest"])
def test_cookiecutter_leaves_what_cruft_leaves(small: Path, tmp_path: Path, combination: str) -> None:
    answers = {
        name: value if name in CHOICES else as_typed(value)
        for name, value in COMBINATIONS[combination].items()
    }
    options = (f"{name}={value}" for name, value in answers.items())
    source, version = small.as_uri(), git(small, "rev-parse", "HEAD")
    one = render(f"git+{source}", tmp_path / "cookiecutter", "--checkout", version, *options, tools=("git",))
    (tmp_path / "cruft").mkdir()
    extra = ("--extra-context", json.dumps(answers))
    cruft(tmp_path / "cruft", "create", source, "--checkout", version, *extra)
    (other,) = (tmp_path / "cruft").iterdir()
    assert git(one, "status", "--porcelain") == ""
    assert contents(one) == {
        path.relative_to(other).as_posix(): path.read_bytes() for path in other.rglob("*") if path.is_file()
    }


def test_cruft_works_from_the_first_day_on(born: Path) -> None:
    assert "up to date" in cruft(born, "check", "--checkout", "v1.0.0")
    assert cruft(born, "diff", "--checkout", "v1.0.0") == ""
    assert link(born)["checkout"] == "v1.0.0"
    cruft(born, "update", "--skip-apply-ask", "--checkout", "v1.1.0")
    assert b"It came later" in contents(born)["deploy/kubernetes/base/deployment.yaml"]


def test_the_list_of_the_teams_files_and_the_tree_agree(born: Path) -> None:
    skip = tomllib.loads((born / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cruft"]["skip"]
    assert set(skip) == OWN
    assert set(skip) <= contents(born).keys()


def test_ordinary_work_edits_no_file_of_the_template(first: Path, lending: Path, uv: Path) -> None:
    shell(lending, uv, "run", "--quiet", "pytest", "tests/test_books.py", "tests/test_app.py")
    before, after = contents(first), contents(lending)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= OWN | {"pyproject.toml"}
    assert "src/my_service/app.py" in changed
    # What a team adds to pyproject.toml lies below a line that says so, where an update can't meet it.
    lines = git(lending, "diff", "--unified=1", "HEAD~1", "--", "pyproject.toml").splitlines()
    touched = [index for index, line in enumerate(lines) if re.match(r"[+-](?![+-])", line)]
    assert len(touched) == 3
    assert all("# Yours" in lines[min(touched[:2]) - 1] or index > touched[1] for index in touched)


def without_some(service: Path, lending: Path) -> None:
    """A team that has no use for three of the template's files."""
    for name in (".envrc", "compose.yaml", ".github/dependabot.yml"):
        (service / name).unlink()
    commit(service, "Drop what we don't use")


def worked_on(service: Path, lending: Path) -> None:
    git(service, "pull", "--quiet", "--ff-only", str(lending), "main")


# What the bot of the service that is worked on raises before each update. Some of it the template raises
# too, to an older version, a newer one or the same.
Bumps = tuple[tuple[str, str, str], ...]
BUMPS: tuple[Bumps, ...] = (
    (
        ("Dockerfile", "astral-sh/uv:0.13.9", "astral-sh/uv:0.13.10"),
        ("pyproject.toml", '"msgspec>=0.22,<0.23"', '"msgspec>=0.22,<0.25"'),
        (CI, CHECKOUT, f"actions/checkout@{'6' * 40} # v6.0.3"),
    ),
    (
        ("pyproject.toml", '"uvloop>=0.23,<0.24"', '"uvloop>=0.23,<0.26"'),
        ("pyproject.toml", '"svcs>=26.2,<27"', '"svcs>=26.2,<28"'),
    ),
    (
        ("Dockerfile", "FROM python:3.15-slim", "FROM python:3.15.1-slim"),
        ("pyproject.toml", '"ruff>=0.17.6,<0.18"', '"ruff>=0.17.6,<0.18.5"'),
    ),
)
RAISED = {
    "Dockerfile": ("FROM python:3.15.1-slim", "astral-sh/uv:0.13.10 "),
    CI: (f"actions/checkout@{'6' * 40} # v6.0.3",),
    "pyproject.toml": (
        '"msgspec>=0.22,<0.25"',
        '"uvloop>=0.23,<0.26"',
        '"svcs>=26.2,<28"',
        '"ruff>=0.17.6,<0.19"',
    ),
}
DELETED = frozenset({".envrc", "compose.yaml", ".github/dependabot.yml"})
MORE = {"tests/test_books.py", ".github/workflows/own.yml", "pyproject.toml"}
# The last says what a bot raises; there, the suite is run in the end. The other ends as a fresh render does,
# whose suite test_generated.py runs: its updates build no environment.
HISTORIES: dict[str, tuple[Callable[[Path, Path], None], set[str], frozenset[str], tuple[Bumps, ...]]] = {
    "worked on": (worked_on, OWN | MORE, frozenset(), BUMPS),
    "without some": (without_some, {"uv.lock"}, DELETED, ()),
}


def raise_versions(service: Path, bumps: Bumps) -> None:
    """Merge the pull requests of a bot, each a commit."""
    for name, old, new in bumps:
        text = (service / name).read_text(encoding="utf-8")
        assert old in text
        (service / name).write_text(text.replace(old, new), encoding="utf-8")
        commit(service, f"Bump to {new}")


@pytest.mark.parametrize("history", HISTORIES)
def test_updates_merge_one_by_one_and_in_one_leap(
    born: Path, lending: Path, fresh: Render, tmp_path: Path, path: str, history: str
) -> None:
    live, own, but, bumps = HISTORIES[history]
    live(born, lending)
    leaping = tmp_path / "leaping"
    shutil.copytree(born, leaping, symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    teams = {name: text for name, text in contents(born).items() if name in OWN - {".env.example", "uv.lock"}}
    # There is one already with nearly all that the lock names.
    whole = {"UV_PROJECT_ENVIRONMENT": str(lending / ".venv")}
    for version, raised in zip(RELEASES, bumps or ((),) * len(RELEASES), strict=True):
        raise_versions(born, raised)
        has_suite = bool(bumps) and version == RELEASES[-1]
        options = whole if has_suite else {"PATH": path}
        done = update(born, "--checkout", version, *(() if has_suite else ("--no-suite",)), **options)
        assert done.returncode == 0, done.stdout
        same_as_fresh(born, fresh(version), version, own, but)
        if has_suite:
            assert "The suite passes with it." in done.stdout
            assert b"APP_HTTP_LATER" in contents(born)[".env.example"]
            texts = contents(born)
            assert not [line for name in RAISED for line in RAISED[name] if line.encode() not in texts[name]]
        commit(born, f"Update to {version}")
    assert {name: text for name, text in contents(born).items() if name in teams} == teams
    raise_versions(leaping, tuple(bump for raised in bumps for bump in raised))
    done = update(leaping, "--no-suite", **(whole if bumps else {"PATH": path}))
    assert done.returncode == 0, done.stdout
    commit(leaping, "Leap")
    assert git(leaping, "rev-parse", "HEAD^{tree}") == git(born, "rev-parse", "HEAD^{tree}")


def test_two_years_in_a_folder_of_a_large_repository(
    lending: Path, fresh: Render, tmp_path: Path, path: str
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    git(whole, "init", "--quiet", "--initial-branch=main")
    service = whole / "services/my-service"
    shutil.copytree(lending, service, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv"))
    commit(whole, "Add the service")
    stream = "".join(
        f"commit refs/heads/main\ncommitter Zoe <zoe@example.org> {1_700_000_000 + week * 50_000} +0000\n"
        f"data 4\nWork\n{'from refs/heads/main^0' + chr(10) if week == 0 else ''}"
        f"M 644 inline other/{week % 50}.txt\ndata {len(str(week))}\n{week}\n"
        for week in range(1200)
    )
    subprocess.run(
        (tool("git"), "fast-import", "--quiet"),
        cwd=whole,
        env=clean_environment(),
        input=stream.encode(),
        check=True,
    )
    git(whole, "reset", "--quiet", "--hard", "main")
    for version in RELEASES[1:]:
        done = update(service, "--checkout", version, "--no-suite", PATH=path)
        assert done.returncode == 0, done.stdout
        same_as_fresh(service, fresh(version), version, OWN | MORE, frozenset())
        commit(whole, f"Update to {version}")
    assert (whole / "other/49.txt").is_file()


def test_a_clone_without_history_merges_too(lending: Path, tmp_path: Path, path: str) -> None:
    git(tmp_path, "clone", "--quiet", "--depth=1", lending.as_uri(), "shallow")
    done = update(tmp_path / "shallow", "--no-suite", PATH=path)
    assert done.returncode == 0, done.stdout
    assert not [*(tmp_path / "shallow").rglob("*.rej")]


def test_a_conflict_is_reported_and_nothing_is_lost(born: Path, path: str, tmp_path: Path) -> None:
    replace(born / "Dockerfile", "STOPSIGNAL SIGTERM\n", "# Ours.\nSTOPSIGNAL SIGTERM\n")
    commit(born, "Say whose it is")
    before, head = contents(born), git(born, "rev-parse", "HEAD")
    done = update(born, "--checkout", "v1.1.0", PATH=path)
    assert done.returncode != 0
    assert "  Dockerfile: changed here and in the template\n" in done.stdout
    assert "missing" not in done.stdout
    assert "Traceback" not in done.stdout
    both = (born / "Dockerfile").read_text(encoding="utf-8")
    assert "# Ours.\n" in both
    assert "# As it was.\n" in both
    assert git(born, "rev-parse", "HEAD") == head
    again = update(born, "--checkout", "v1.1.0", PATH=path)
    assert "Commit or stash them first" in again.stdout

    conflicting = Path(shutil.copytree(born, tmp_path / "conflicting", symlinks=True))
    git(born, "reset", "--quiet", "--hard")
    assert contents(born) == before
    born = conflicting
    (born / "Dockerfile").write_bytes(before["Dockerfile"].replace(b"# Ours.", b"# As it was, ours."))
    commit(born, "Update to v1.1.0, by hand")
    done = update(born, "--checkout", "v1.2.0", "--no-suite", PATH=path)
    assert done.returncode == 0, done.stdout
    assert b"# As it was, ours." in contents(born)["Dockerfile"]


def test_a_file_that_both_have_made_is_a_conflict(born: Path, path: str) -> None:
    (born / "docs").mkdir()
    (born / "docs/on-call.md").write_text("Ada\n", encoding="utf-8")
    commit(born, "Say who is on call")
    done = update(born, PATH=path)
    assert done.returncode != 0
    assert "  docs/on-call.md: changed here and in the template\n" in done.stdout
    assert "\nAda\n" in (born / "docs/on-call.md").read_text(encoding="utf-8")


def test_an_answer_can_be_changed_later(born: Path, fresh: Render, path: str) -> None:
    answers = '{"deploy_to": "swarm", "on_call": "Ada"}'
    done = update(born, "--no-suite", "--variables-to-update", answers, PATH=path)
    assert done.returncode == 0, done.stdout
    wanted = fresh("v2.0.0", deploy_to="swarm", on_call="Ada")
    # It was the team's, so it is the team that throws it away.
    same_as_fresh(
        born,
        wanted,
        "v2.0.0",
        {"uv.lock", "README.md", *(name for name in OWN if name.startswith("deploy/"))},
        frozenset(),
    )


def test_a_service_with_all_there_is_stays_as_it_is(born: Path, path: str) -> None:
    before = contents(born)
    done = update(born, "--checkout", "v1.0.0", PATH=path)
    assert (done.returncode, "Nothing to do" in done.stdout) == (0, True), done.stdout
    assert contents(born) == before


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "uvx cruft link"),
        ({"commit": "0" * 40}, "its history was rewritten"),
        ({"template": "/nowhere"}, "'/nowhere' does not appear to be a git repository"),
    ],
)
def test_a_broken_link_is_explained(born: Path, path: str, state: dict[str, str] | None, words: str) -> None:
    if state is None:
        (born / ".cruft.json").unlink()
    else:
        (born / ".cruft.json").write_text(json.dumps(link(born) | state), encoding="utf-8")
    commit(born, "Break the link")
    done = update(born, PATH=path)
    assert done.returncode != 0
    assert words in done.stdout
    assert "Traceback" not in done.stdout
    assert git(born, "status", "--porcelain") == ""


def test_a_template_in_a_folder_of_a_repository_updates_its_services(
    small: Path, tmp_path: Path, path: str
) -> None:
    inner = tmp_path / "mono/template"
    shutil.copytree(small, inner, ignore=shutil.ignore_patterns(".git"))
    git(inner.parent, "init", "--quiet", "--initial-branch=main")
    commit(inner.parent, "All templates")
    cruft(tmp_path, "create", str(inner.parent), "--directory", "template")
    service = tmp_path / "my-service"
    git(service, "init", "--quiet", "--initial-branch=main")
    commit(service, "Render")
    replace(inner / "{{cookiecutter.project_slug}}/Dockerfile", "STOPSIGNAL", "# Later.\nSTOPSIGNAL")
    commit(inner.parent, "Later")
    done = update(service, "--no-suite", PATH=path)
    assert done.returncode == 0, done.stdout
    assert b"# Later." in contents(service)["Dockerfile"]


def test_the_program_clones_the_template_when_it_is_called_without_a_clone(
    born: Path, template: Path
) -> None:
    program = template / "scripts/update_service.py"
    assert "Nothing to do" in shell(
        born, tool("uv"), "run", "--quiet", "python", program, "--checkout", "v1.0.0"
    )
