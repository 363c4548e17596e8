"""A service through the years: real cruft, real git, three later versions of this template."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import COMBINATIONS, as_typed, clean_environment, copy_of_the_template, git, tool

pytestmark = pytest.mark.slow

PROJECT = "{{cookiecutter.project_slug}}"
PACKAGE = f"{PROJECT}/src/{{{{cookiecutter.package_name}}}}"
RELEASES = ("v1.1.0", "v1.2.0", "v2.0.0")
# What a team owns, by name: the list in pyproject.toml has to say the same.
OWN = {
    ".env.example",
    ".github/CODEOWNERS",
    ".github/pull_request_template.md",
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

# A test of the route that `work` adds.
BOOKS = """\
import svcs
from starlette.testclient import TestClient

from my_service.app import create_app
from my_service.chassis.config import load
from my_service.config import Config
from my_service.services import register_services


def test_counts_the_books() -> None:
    registry = svcs.Registry()
    config = load(Config, {"APP_SHELF_SIZE": "4"}).config
    register_services(registry, config)
    assert TestClient(create_app(config, registry)).get("/books").text == "4"
"""

Update = Callable[..., subprocess.CompletedProcess[str]]


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
    names = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def release(folder: Path, version: str, notes: str) -> None:
    replace(folder / "CHANGELOG.md", "## Unreleased\n", f"## Unreleased\n\n## {version[1:]}\n\n{notes}\n")
    commit(folder, f"Release {version}")
    git(folder, "tag", version)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This template, as it stands in the work tree, and three releases that come after it."""
    folder = copy_of_the_template(tmp_path_factory.mktemp("later") / "deployable-service")
    git(folder, "tag", "v1.0.0")
    project, package = folder / PROJECT, folder / PACKAGE

    # A setting more, a wider range, a changed Dockerfile, workflow and deploy file.
    host = 'host: str = environ.var("127.0.0.1", text, help="address that requests are taken on")\n'
    later = '    later: int = environ.var(7, integer(0, 9), help="a setting that came later")\n'
    replace(package / "chassis/config.py", host, host + later)
    replace(project / "pyproject.toml", '"msgspec>=0.22,<0.23"', '"msgspec>=0.22,<0.24"')
    replace(project / "Dockerfile", "STOPSIGNAL SIGTERM\n", "# As it was.\nSTOPSIGNAL SIGTERM\n")
    replace(project / ".github/workflows/ci.yml", "timeout-minutes: 10", "timeout-minutes: 11")
    deployment = project / "deploy/kubernetes/base/deployment.yaml"
    deployment.write_text("# It came later.\n" + deployment.read_text(encoding="utf-8"), encoding="utf-8")
    release(
        folder, "v1.1.0", "- APP_HTTP_LATER, a setting.\n\n### What an update asks of a service\n\nNothing."
    )

    # A file renamed, one deleted, one added, and a question that nobody was asked before.
    tests = project / "tests/chassis"
    (tests / "test_secrets.py").rename(tests / "test_secret_files.py")
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


Render = Callable[..., Path]


@pytest.fixture(scope="module")
def fresh(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Give what cruft renders of a version, with the default answers or others."""
    made: dict[str, Path] = {}

    def fresh(version: str, **answers: str) -> Path:
        key = f"{version} {answers}"
        if key not in made:
            into = tmp_path_factory.mktemp("fresh")
            cruft(
                into,
                "create",
                template.as_uri(),
                "--checkout",
                version,
                "--extra-context",
                json.dumps(answers),
            )
            made[key] = into / "my-service"
        return made[key]

    return fresh


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


@pytest.fixture
def born(template: Path, tmp_path: Path) -> Path:
    """A service of the first version, as plain cookiecutter leaves it."""
    return render(f"git+{template.as_uri()}", tmp_path / "born", "--checkout", "v1.0.0")


@pytest.fixture
def update(uv: Path) -> Update:
    """Run the service's own script, and return what became of it."""

    def update(service: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        identity = {
            f"GIT_{role}_{what}": "zoe@example.org"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        return subprocess.run(
            (uv, "run", "--quiet", "python", ".github/template_update.py", *options),
            cwd=service,
            env=clean_environment(**identity, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )

    return update


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
    (service / "tests/test_books.py").write_text(BOOKS, encoding="utf-8")
    (service / ".github/workflows/own.yml").write_text(
        "name: own\non: workflow_dispatch\njobs: {}\n", encoding="utf-8"
    )
    shell(service, uv, "add", "--quiet", "aiosqlite>=0.20", "humanize>=4")
    shell(service, uv, "add", "--quiet", "--dev", "time-machine>=2")
    example = shell(
        service, uv, "run", "--quiet", "python", "-m", "my_service", "config", "--format", "dotenv"
    )
    (service / ".env.example").write_text(example, encoding="utf-8")


def link(service: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((service / ".cruft.json").read_text(encoding="utf-8"))
    return state


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
    assert [name for name in sorted(names) if there[name] != wanted[name]] == [], version
    assert link(service) == json.loads(wanted[".cruft.json"]), version


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_cookiecutter_leaves_what_cruft_leaves(template: Path, tmp_path: Path, combination: str) -> None:
    answers = {
        name: value if name in ("web_framework", "deploy_to") else as_typed(value)
        for name, value in COMBINATIONS[combination].items()
    }
    options = (f"{name}={value}" for name, value in answers.items())
    source = template.as_uri()
    one = render(f"git+{source}", tmp_path / "cookiecutter", "--checkout", "v1.0.0", *options, tools=("git",))
    (tmp_path / "cruft").mkdir()
    extra = ("--extra-context", json.dumps(answers))
    cruft(tmp_path / "cruft", "create", source, "--checkout", "v1.0.0", *extra)
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


def test_ordinary_work_edits_no_file_of_the_template(born: Path, uv: Path) -> None:
    before = contents(born)
    work(born, uv)
    shell(born, uv, "run", "--quiet", "pytest", "--no-cov", "tests/test_books.py", "tests/test_app.py")
    after = contents(born)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= OWN | {"pyproject.toml"}
    assert "src/my_service/app.py" in changed
    # What a team adds to pyproject.toml lies below a line that says so, where an update can't meet it.
    lines = git(born, "diff", "--unified=1", "--", "pyproject.toml").splitlines()
    touched = [index for index, line in enumerate(lines) if re.match(r"[+-](?![+-])", line)]
    assert len(touched) == 3
    assert all("# Yours" in lines[min(touched[:2]) - 1] or index > touched[1] for index in touched)


def untouched(service: Path, uv: Path) -> None: ...


def without_some(service: Path, uv: Path) -> None:
    """A team that has no use for three of the template's files."""
    for name in (".envrc", "compose.yaml", ".github/dependabot.yml"):
        (service / name).unlink()
    commit(service, "Drop what we don't use")


def worked_on(service: Path, uv: Path) -> None:
    work(service, uv)
    commit(service, "Lend books")


DELETED = frozenset({".envrc", "compose.yaml", ".github/dependabot.yml"})
MORE = {"tests/test_books.py", ".github/workflows/own.yml", "pyproject.toml"}
# The last says after which releases the suite is run: a tree equal to a fresh render once is enough.
HISTORIES = {
    "untouched": (untouched, {"uv.lock"}, frozenset[str](), RELEASES[-1:]),
    "worked on": (worked_on, OWN | MORE, frozenset[str](), RELEASES),
    "without some": (without_some, {"uv.lock"}, DELETED, RELEASES[-1:]),
}


@pytest.mark.parametrize("history", HISTORIES)
def test_updates_merge_one_by_one_and_in_one_leap(
    born: Path, fresh: Render, update: Update, uv: Path, tmp_path: Path, history: str
) -> None:
    live, own, but, suites = HISTORIES[history]
    live(born, uv)
    leaping = tmp_path / "leaping"
    shutil.copytree(born, leaping, symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    teams = {name: text for name, text in contents(born).items() if name in OWN - {".env.example", "uv.lock"}}
    for version in RELEASES:
        done = update(born, "--checkout", version, *(() if version in suites else ("--no-suite",)))
        assert done.returncode == 0, done.stdout
        assert version not in suites or "The suite passes with it." in done.stdout
        same_as_fresh(born, fresh(version), version, own, but)
        assert b"APP_HTTP_LATER" in contents(born)[".env.example"]
        commit(born, f"Update to {version}")
    assert {name: text for name, text in contents(born).items() if name in teams} == teams
    done = update(leaping, "--no-suite")
    assert done.returncode == 0, done.stdout
    commit(leaping, "Leap")
    assert git(leaping, "rev-parse", "HEAD^{tree}") == git(born, "rev-parse", "HEAD^{tree}")


def test_two_years_in_a_folder_of_a_large_repository(
    template: Path, fresh: Render, update: Update, uv: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    git(whole, "init", "--quiet", "--initial-branch=main")
    service = render(f"git+{template.as_uri()}", whole / "services", "--checkout", "v1.0.0")
    for name in (".programs", ".gitconfig", ".cookiecutters", ".cookiecutter_replay", ".cache", ".local"):
        path = service.parent / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    commit(whole, "Add the service")
    worked_on(service, uv)
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
    for version in RELEASES:
        done = update(service, "--checkout", version, *(() if version == RELEASES[-1] else ("--no-suite",)))
        assert done.returncode == 0, done.stdout
        same_as_fresh(service, fresh(version), version, OWN | MORE, frozenset())
        commit(whole, f"Update to {version}")
    assert (whole / "other/49.txt").is_file()


def test_a_clone_without_history_merges_too(born: Path, update: Update, uv: Path, tmp_path: Path) -> None:
    worked_on(born, uv)
    git(tmp_path, "clone", "--quiet", "--depth=1", born.as_uri(), "shallow")
    done = update(tmp_path / "shallow", "--no-suite")
    assert done.returncode == 0, done.stdout
    assert not [*(tmp_path / "shallow").rglob("*.rej")]


def test_a_conflict_is_reported_and_nothing_is_lost(born: Path, update: Update, uv: Path) -> None:
    replace(born / "Dockerfile", "STOPSIGNAL SIGTERM\n", "# Ours.\nSTOPSIGNAL SIGTERM\n")
    commit(born, "Say whose it is")
    before, head = contents(born), git(born, "rev-parse", "HEAD")
    done = update(born, "--checkout", "v1.1.0")
    assert done.returncode == 1
    assert "  Dockerfile: changed here and in the template\n" in done.stdout
    assert "missing" not in done.stdout
    assert "Traceback" not in done.stdout
    both = (born / "Dockerfile").read_text(encoding="utf-8")
    assert "# Ours.\n" in both
    assert "# As it was.\n" in both
    assert git(born, "rev-parse", "HEAD") == head
    again = update(born, "--checkout", "v1.1.0")
    assert (again.returncode, "commit or stash them first" in again.stdout) == (1, True)

    git(born, "reset", "--quiet", "--hard")
    assert contents(born) == before
    update(born, "--checkout", "v1.1.0")
    (born / "Dockerfile").write_bytes(before["Dockerfile"].replace(b"# Ours.", b"# As it was, ours."))
    shell(born, uv, "lock", "--quiet")
    commit(born, "Update to v1.1.0, by hand")
    done = update(born, "--checkout", "v1.2.0", "--no-suite")
    assert done.returncode == 0, done.stdout
    assert b"# As it was, ours." in contents(born)["Dockerfile"]


def test_what_cruft_drops_without_a_word_is_noticed(born: Path, update: Update) -> None:
    # A file where the template has a folder from now on: git refuses the patch, and cruft says all is well.
    (born / "docs").write_text("Ask Ada.\n", encoding="utf-8")
    commit(born, "Say who knows")
    done = update(born)
    assert done.returncode == 1
    assert "  docs/on-call.md: the template's change is missing\n" in done.stdout
    assert (born / "docs").read_text(encoding="utf-8") == "Ask Ada.\n"


def test_a_file_that_both_have_made_is_a_conflict(born: Path, update: Update) -> None:
    (born / "docs").mkdir()
    (born / "docs/on-call.md").write_text("Ada\n", encoding="utf-8")
    commit(born, "Say who is on call")
    done = update(born)
    assert done.returncode == 1
    assert "  docs/on-call.md: changed here and in the template\n" in done.stdout
    assert "\nAda\n" in (born / "docs/on-call.md").read_text(encoding="utf-8")


def test_an_answer_can_be_changed_later(born: Path, fresh: Render, update: Update) -> None:
    done = update(born, "--no-suite", "--variables-to-update", '{"deploy_to": "swarm", "on_call": "Ada"}')
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


# A service as there are many: settings and a password from variables, prints, a port of its own choice.
ELSEWHERE = {
    "books.py": """\
import os

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

LIMIT = int(os.environ.get("BOOKS_LIMIT", "3"))


async def books(request):
    print("asked for books")
    if request.headers.get("authorization") != os.environ["BOOKS_PASSWORD"]:
        return JSONResponse({}, 401)
    return JSONResponse({"limit": LIMIT})


app = Starlette(routes=[Route("/books", books), Route("/health", lambda _: JSONResponse({}))])

if __name__ == "__main__":
    uvicorn.run(app, port=9000)
""",
    "requirements.txt": "starlette\nuvicorn\nhumanize\n",
    "Dockerfile": "FROM python\nCOPY . .\nRUN pip install -r requirements.txt\nCMD python books.py\n",
    "README.md": "# Books\n",
}
# The same, moved to where the page says.
MOVED = {
    "src/books/config.py": """\
import environ

from .chassis.config import Settings, integer, secret
from .chassis.secrets import Secret


@environ.config(frozen=True)
class Books:
    limit: int = environ.var(3, integer(1, 99), help="books at a time")
    password: Secret = secret(help="what callers must show")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    books: Books = environ.group(Books)
""",
    "src/books/app.py": """\
import hmac

import svcs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .config import Config


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    async def books(request: Request) -> Response:
        shown = request.headers.get("authorization", "")
        if not hmac.compare_digest(shown.encode(), config.books.password.reveal().encode()):
            return JSONResponse({}, 401)
        return JSONResponse({"limit": config.books.limit})

    return Starlette(routes=[Route("/books", books)])
""",
    "src/books/domain.py": "",
    "src/books/services.py": """\
import svcs

from .config import Config

INFORMS: frozenset[type] = frozenset()


def register_services(registry: svcs.Registry, config: Config) -> None: ...
""",
    "tests/environment.py": """\
ENVIRONMENT: dict[str, str] = {}
SECRETS: dict[str, str] = {"books_password": "hunter2"}
""",
    "tests/test_app.py": """\
from pathlib import Path

import svcs
from starlette.testclient import TestClient

from books.app import create_app
from books.chassis.config import load
from books.config import Config


def test_lends_books_to_those_who_know_the_password(tmp_path: Path) -> None:
    (tmp_path / "books_password").write_text("hunter2")
    config = load(Config, {"APP_SECRETS_DIR": str(tmp_path), "APP_BOOKS_LIMIT": "4"}).config
    client = TestClient(create_app(config, svcs.Registry()))
    assert client.get("/books").status_code == 401
    assert client.get("/books", headers={"Authorization": "hunter2"}).json() == {"limit": 4}
""",
}


def test_a_service_from_elsewhere_moves_in_as_the_page_says(
    template: Path, update: Update, uv: Path, tmp_path: Path
) -> None:
    service = tmp_path / "books"
    service.mkdir()
    for name, text in ELSEWHERE.items():
        (service / name).write_text(text, encoding="utf-8")
    git(service, "init", "--quiet", "--initial-branch=main")
    commit(service, "Two years of work")

    answers = (
        "--checkout",
        "v1.0.0",
        "--extra-context",
        '{"project_slug": "books", "package_name": "books"}',
    )
    cruft(service, "link", str(template), "--no-input", *answers)
    cruft(tmp_path, "create", str(template), "--output-dir", str(tmp_path / "render"), *answers)
    rendered = tmp_path / "render" / "books"
    shell(service, "cp", "--recursive", "--no-clobber", f"{rendered}/.", ".")
    differ = {
        path.relative_to(rendered).as_posix()
        for path in rendered.rglob("*")
        if path.is_file() and path.read_bytes() != (service / path.relative_to(rendered)).read_bytes()
    }
    assert differ == {"Dockerfile", "README.md"}
    shutil.copy(rendered / "Dockerfile", service / "Dockerfile")
    for name in ("books.py", "requirements.txt", "tests/test_domain.py"):
        (service / name).unlink()
    for name, text in MOVED.items():
        (service / name).write_text(text, encoding="utf-8")
    shell(service, uv, "add", "--quiet", "humanize")
    example = shell(service, uv, "run", "--quiet", "python", "-m", "books", "config", "--format", "dotenv")
    (service / ".env.example").write_text(example, encoding="utf-8")
    shell(service, uv, "run", "--quiet", "pytest")
    said = cruft(service, "diff")
    assert re.findall(r"^\+\+\+ \S+?/(\S+)", said, flags=re.MULTILINE) == ["pyproject.toml"]
    commit(service, "Move to the template")

    done = update(service, "--no-suite")
    assert done.returncode == 0, done.stdout
    assert b"APP_HTTP_LATER" in contents(service)[".env.example"]


def test_a_service_with_all_there_is_stays_as_it_is(born: Path, update: Update) -> None:
    before = contents(born)
    done = update(born, "--checkout", "v1.0.0")
    assert (done.returncode, "Nothing to do" in done.stdout) == (0, True), done.stdout
    assert contents(born) == before


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "uvx cruft link"),
        ({"commit": "0" * 40}, "its history was rewritten"),
        ({"template": "/nowhere"}, "git clone --quiet /nowhere"),
    ],
)
def test_a_broken_link_is_explained(
    born: Path, update: Update, state: dict[str, str] | None, words: str
) -> None:
    if state is None:
        (born / ".cruft.json").unlink()
    else:
        (born / ".cruft.json").write_text(json.dumps(link(born) | state), encoding="utf-8")
    commit(born, "Break the link")
    done = update(born)
    assert done.returncode == 1
    assert words in done.stdout
    assert "Traceback" not in done.stdout
    assert git(born, "status", "--porcelain") == ""


def test_the_bot_opens_one_pull_request_and_renews_it(born: Path, update: Update, tmp_path: Path) -> None:
    remote, programs, calls = tmp_path / "remote.git", tmp_path / "programs", tmp_path / "calls"
    git(tmp_path, "init", "--quiet", "--bare", str(remote))
    git(born, "remote", "add", "origin", str(remote))
    git(born, "push", "--quiet", "origin", "main")
    programs.mkdir()
    # GitHub's own part can't be had here; all else is real.
    (programs / "gh").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {calls}\n'
        f'[ "$2" != list ] || [ "$(grep -c "pr create" {calls})" = 0 ] || echo 17\n',
        encoding="utf-8",
    )
    (programs / "gh").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    for version, title in (("v1.1.0", "pr create --head template-update"), ("v2.0.0", "pr edit 17")):
        git(born, "switch", "--quiet", "main")
        done = update(born, "--propose", "--no-suite", "--checkout", version, PATH=path)
        assert done.returncode == 0, done.stdout
        said = calls.read_text(encoding="utf-8")
        assert f"{title} --title Update to {version} of the template --body" in said
        assert "APP_HTTP_LATER, a setting." in said
        assert (
            git(remote, "log", "--format=%s", "main..template-update")
            == f"Update to {version} of the template"
        )
    assert "To look at `jobs.py`." in calls.read_text(encoding="utf-8")

    shutil.rmtree(remote)
    git(born, "switch", "--quiet", "main")
    done = update(born, "--propose", "--no-suite", PATH=path)
    assert done.returncode == 1
    assert "permission `workflows`" in done.stdout
