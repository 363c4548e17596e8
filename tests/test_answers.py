"""Any answers: refused in words with nothing left behind, or a project whose files are valid."""

import ast
import json
import keyword
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from kit.command import Command
from kit.hooks import HOOK
from kit.parsing import check_parses
from kit.project import CHOICES, ROOT, TARGETS, Bake, Project, RefusedError, Renders
from kit.service import clean_environment

Person = Callable[..., tuple[int, str]]

# A bake takes its time: few in a usual run, all in `make hostile`.
SETS = 500 if "HOSTILE_SCALE" in os.environ else 40

GOOD = {
    "project_name": "Billing",
    "project_description": "Sends bills.",
    "project_slug": "billing-api",
    "package_name": "billing_api",
    "github_owner": "acme",
    **{
        name: default
        for name, default in json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8")).items()
        if name.startswith("_") and not name.startswith("__")
    },
}

REFUSED: dict[str, list[Any]] = {
    "project_name": [
        "", " ", "a" * 81, " a", "a ", "a\nb", "a\x00b", "a\x7f", "\udc80", "\u2028", "\ufffe", "\u202e",
        "\u200b", "\u200d", "\u3000", "a\u200b", "\ufeffa", "a \u2060", None, 5, True, ["a"], {"a": "b"},
    ],
    "project_description": ["", "a" * 201, "a\tb", "{{ x }}", "{% x %}", "{# x #}"],
    "project_slug": [
        "", ".", "..", "/", "../x", "../../a/b/c", "a/b/c", "/tmp/x", "a\\b", "a\x00b", "a" * 41, "a" * 300,
        "Billing", "billing_api", "-a", "a-", "a--b", "3a", "é", "a b", "~", "$HOME", "con\n",
        "structlog", "environ-config", "uv",
        "on", "null", "y", "python", "sh", "hadolint", "scratch", "none", "postgres", "template1", "user",
    ],
    "package_name": [
        "", "..", "../x", "a/b", "a-b", "Billing", "_a", "3a", "é", "a.b", "a" * 41, "class", "match",
        "json", "test", "compression", "sitecustomize", "starlette", "fastapi", "environ", "attr", "yaml",
        "tests", "chassis", "src",
    ],
    "github_owner": ["", "-a", "a-", "a--b", "a_b", "a/b", "a" * 40, "é", "@acme", "acme\n"],
    "_registry": ["", "https://ghcr.io", "a/", "ghcr.io/Acme", "ghcr.io/a b", "ghcr.io//a", "u@ghcr.io"],
    "_docs": ["", "docs.example", "https://docs.example/a b", 'https://docs.example/"', None],
    "_github": ["", "github.com", "https://git hub.example", "https://a.example/\\", "https://%h.example"],
    "_python_image": ["python:3.15 AS x", "Python:3.15", "python\nRUN id", "${IMAGE}", 'python"'],
    "_uv_image": [" ", "uv@sha256:0", "https://ghcr.io/uv"],
    "_ca_bundle": ["/a b.pem", "~/ca.pem", "$HOME/ca.pem", "/a.pem; id", '/a".pem', "a" * 40 + "!"],
    "_runner": ["", "a: b", "[a, b", "[]", "- a", "#a", "${{ github.token", "a\nb", ["self-hosted"]],
    "_reviewers": ["@acme/platform\n* @eve", "#", " ", "@a  @b"],
    "_licence": ['MIT"', "MIT\n", "\\", "(MIT"[:1], "MIT; x"],
    "_package_index": [
        "packages.example/simple", "ftp://packages.example", "https://", "https://a.example/ b", "file:///srv",
        "https://ada:hunter2@a.example/simple", "https://hunter2@a.example/simple", 'https://a.example/"',
    ],
}  # fmt: skip

ACCEPTED: dict[str, list[Any]] = {
    "project_name": [
        '"', "'", "\\", "{", "}", "}}", "🚀", "Ω", "👩\N{ZERO WIDTH JOINER}💻", "天気", "عربى", '"""', "'''",
        "#", "a: b", "- x", "[x]", "&a",
    ],
    "project_description": [
        "\\", '\\"', "\\n", "{ {", "$HOME `id`", "*/ --> ]]>", "%s {0}", "null", "~", "a" * 200,
    ],
    "project_slug": ["a", "a1", "a-1-b", "a" * 40],
    "package_name": ["a", "a1", "a_1", "a__b", "a" * 40],
    "github_owner": ["a", "0", "A-b-0", "a" * 39],
    "_registry": ["ghcr.io", "localhost:5000", "registry.acme.example/team/a_b", "10.0.0.1:80/a--b"],
    "_docs": ["https://docs.example/a/~b/c-d_e+f", "http://10.0.0.1:8080"],
    "_github": ["https://git.acme.example:8443", "http://localhost"],
    "_python_image": ["", "localhost:5000/a/python:3.15-Slim", "python@sha256:" + "0" * 64],
    "_uv_image": ["", "ghcr.io/astral-sh/uv:0.13.9@sha256:" + "a" * 64],
    "_ca_bundle": ["", "/etc/ssl/certs/acme-1.2_b.pem", "certs/ca.pem"],
    "_runner": ["ubuntu-24.04", "[self-hosted, linux]", "[ a,b ]", "${{ vars.RUNNER }}"],
    "_reviewers": ["", "@acme/platform", "@ada zoe@example.org @acme/a-b_c"],
    "_licence": ["", "Apache-2.0", "MIT OR (GPL-2.0+ AND BSD-3-Clause)", "LicenseRef-Acme"],
    "_package_index": ["", "https://a.example/simple", "http://10.0.0.1:8080/root/pypi/+simple/"],
}  # fmt: skip


def listed(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(question, answer) for question, answers in table.items() for answer in answers]


def everything_under(folder: Path) -> set[Path]:
    return {*folder.rglob("*")}


@pytest.mark.parametrize(("question", "answer"), listed(REFUSED))
def test_a_bad_answer_is_refused_in_words(question: str, answer: Any) -> None:
    found = HOOK.problems(GOOD | {question: answer})
    assert found
    assert all(problem.startswith(f"{question}: ") for problem in found)
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(("question", "answer"), listed(ACCEPTED))
def test_an_unusual_answer_is_taken(question: str, answer: str) -> None:
    assert HOOK.problems(GOOD | {question: answer}) == []


@pytest.mark.parametrize("slug", REFUSED["project_slug"])
def test_a_bad_slug_leaves_nothing_behind(bake: Bake, slug: str, tmp_path: Path) -> None:
    before = everything_under(tmp_path)
    with pytest.raises(RefusedError, match="project_slug: "):
        bake(**GOOD | {"project_slug": slug})
    assert everything_under(tmp_path) == before
    assert not Path("/tmp/x").exists()


def test_every_bad_answer_is_named_at_once(bake: Bake) -> None:
    # cookiecutter takes a private value as it is, without rendering it first.
    bad = {question: answers[0] for question, answers in REFUSED.items() if not question.startswith("_")}
    with pytest.raises(RefusedError) as refused:
        bake(**bad)
    for question in bad:
        assert f"  - {question}: " in str(refused.value)


def test_later_answers_come_from_earlier_ones(bake: Bake) -> None:
    project = bake(project_name="Zoë's Größen-Dienst 2")
    assert project.answers["project_slug"] == "zoe-s-grossen-dienst-2"
    assert project.package == "zoe_s_grossen_dienst_2"


def test_a_name_that_gives_no_slug_asks_for_one(bake: Bake) -> None:
    with pytest.raises(RefusedError, match="project_slug: ''"):
        bake(project_name="🚀")


def test_each_question_and_each_choice_has_a_line_for_people() -> None:
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    prompts = questions.pop("__prompts__")
    asked = {name: default for name, default in questions.items() if not name.startswith("_")}
    assert len(asked) <= 10
    assert prompts.keys() == asked.keys()
    for name, default in asked.items():
        if isinstance(default, list):
            assert prompts[name].keys() == {"__prompt__", *default}


@pytest.fixture
def person(tmp_path: Path, cookiecutter: Command) -> Person:
    """A person who runs the command in tmp_path, and has no settings but those there."""

    def run(*arguments: str | Path, **environment: str) -> tuple[int, str]:
        own = dict.fromkeys(("HOME", "PATH", "PWD"), str(tmp_path))
        done = cookiecutter((*arguments, ROOT), tmp_path, clean_environment(**own | environment))
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    ("named", "default"),
    [("~", {"deploy_to": "nomad"}), ("mine.yaml", {"web_framework": "3", "deploy_to": "swarm"})],
)
def test_a_default_that_cannot_work_is_refused_and_named(
    person: Person, tmp_path: Path, named: str, default: dict[str, str]
) -> None:
    file = tmp_path / (".cookiecutterrc" if named == "~" else named)
    file.write_text(json.dumps({"default_context": {**default, "github_owner": "acme"}}))
    status, said = person("--no-input", **({} if named == "~" else {"COOKIECUTTER_CONFIG": named}))
    assert status == 1
    wrong = next(iter(default))
    assert f"  - {wrong}: '{default[wrong]}' in {file} is none of " in said
    assert not (tmp_path / "my-service").exists()


def test_without_a_home_there_are_no_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("COOKIECUTTER_CONFIG", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert [*HOOK.lost_defaults({"deploy_to": TARGETS})] == []


def test_a_default_that_is_no_text_is_refused(person: Person, tmp_path: Path) -> None:
    (tmp_path / ".cookiecutterrc").write_text("default_context: {project_name: null, github_owner: no}\n")
    status, said = person("--no-input")
    assert status == 1
    for problem in ("project_name: null is no text; put it between quotes", "github_owner: false is no text"):
        assert f"  - {problem}" in said


def test_a_path_that_cookiecutter_would_render_is_refused(person: Person, tmp_path: Path) -> None:
    (tmp_path / "a {% b").mkdir()
    status, said = person("--no-input", "--output-dir", "a {% b")
    assert status == 1
    assert "/a {% b/my-service: cookiecutter renders a path that looks like a template" in said
    assert [*(tmp_path / "a {% b").iterdir()] == []


def test_defaults_that_work_count(person: Person, tmp_path: Path) -> None:
    (tmp_path / ".cookiecutterrc").write_text(
        "default_context: {deploy_to: systemd, licence: MIT, other: [1]}\n"
    )
    assert person("--no-input")[0] == 0
    assert [path.name for path in (tmp_path / "my-service" / "deploy").iterdir()] == ["systemd"]


REPLAYED = {
    **GOOD,
    **dict.fromkeys(CHOICES, "none"),
    "web_framework": "fastapi",
    "deploy_to": "systemd",
}


@pytest.mark.parametrize("more", [{}, {"_docs": "https://docs.example", "a question of another time": "b"}])
def test_a_file_with_the_answers_is_enough_to_replay(
    person: Person, tmp_path: Path, more: dict[str, str]
) -> None:
    (tmp_path / "answers.json").write_text(json.dumps({"cookiecutter": {**REPLAYED, **more}}))
    status, said = person("--replay-file", "answers.json")
    assert status == 0, said
    project = tmp_path / REPLAYED["project_slug"]
    assert (project / "src" / REPLAYED["package_name"] / "app.py").read_text().count("fastapi")
    assert more.get("_docs", "https://github.com/") in (project / "README.md").read_text()


@pytest.mark.parametrize("question", ["project_slug", "package_name"])
def test_what_a_replayed_file_lacks_is_asked(person: Person, tmp_path: Path, question: str) -> None:
    answers = {name: answer for name, answer in REPLAYED.items() if name != question}
    (tmp_path / "answers.json").write_text(json.dumps({"cookiecutter": answers}))
    status, said = person("--replay-file", "answers.json")
    assert status == 1
    assert "Traceback" not in said
    assert "[1/1] " in said


def test_a_replayed_answer_is_checked_too(person: Person, tmp_path: Path) -> None:
    bad = {"package_name": "json", "deploy_to": "nomad", "database": True, "tracing": None, "github_owner": 5}
    (tmp_path / "answers.json").write_text(json.dumps({"cookiecutter": REPLAYED | bad}))
    status, said = person("--replay-file", "answers.json")
    assert "  - package_name: 'json' would hide Python's own module" in said
    assert "  - deploy_to: 'nomad' is none of kubernetes, swarm, systemd\n" in said
    assert "  - database: true is none of none, postgresql\n" in said
    assert "  - tracing: null is none of none, opentelemetry\n" in said
    assert "  - github_owner: 5 is no text; put it between quotes, or leave it out\n" in said
    assert status == 1
    assert not (tmp_path / REPLAYED["project_slug"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.7.3", "2.2.3"])
def test_an_old_cookiecutter_is_told_so_in_one_line(tmp_path: Path, uv: Path, version: str) -> None:
    cache = os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    # The old ones import what later versions of setuptools no longer have.
    old = (uv, "tool", "run", "--from", f"cookiecutter=={version}", "--with", "setuptools<80", "cookiecutter")
    done = subprocess.run(
        (*old, "--no-input", ROOT),
        cwd=tmp_path,
        env=clean_environment(HOME=str(tmp_path), UV_CACHE_DIR=cache),
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stderr.replace("\n", " ")
    assert done.returncode != 0
    assert f"This template needs cookiecutter {HOOK.COOKIECUTTER} or newer, on Python" in said
    assert "can't be used" not in said
    assert [*tmp_path.glob("*service*")] == []


def test_an_old_python_is_told_so_in_one_line(person: Person, tmp_path: Path) -> None:
    old = 'import os, sys\nif "cookiecutter" not in str(sys.orig_argv):\n    del sys.stdlib_module_names\n'
    (tmp_path / "sitecustomize.py").write_text(f"{old}    sys.version_info = (3, 9, 1, 'final', 0)\n")
    status, said = person("--no-input", PYTHONPATH=str(tmp_path))
    assert status == 1
    needed = f"This template needs cookiecutter {HOOK.COOKIECUTTER} or newer, on Python 3.10 or newer"
    assert [line for line in said.splitlines() if line.startswith(needed)]
    assert f"{tmp_path}" not in said
    for hook in (ROOT / "hooks").glob("pre*.py"):
        ast.parse(hook.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("defaults", [{}, {"deploy_to": "systemd", "database": "postgresql"}])
def test_without_hooks_no_file_is_of_another_answer(
    person: Person, tmp_path: Path, renders: Renders, defaults: dict[str, str]
) -> None:
    (tmp_path / ".cookiecutterrc").write_text(json.dumps({"default_context": defaults}))
    status, said = person("--no-input", "--accept-hooks", "no")
    assert status == 0, said
    project, usual = tmp_path / "my-service", renders.get(**defaults).path
    files, wanted = (
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (project, usual)
    )
    assert files == wanted - {Path(".cruft.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "answers",
    [
        {"web_framework": "starlette"},
        {"web_framework": "fastapi"},
        {"tracing": "opentelemetry", "http_client": "httpx2", "deploy_to": "systemd"},
    ],
    ids=["starlette", "fastapi", "traced"],
)
def test_the_check_knows_every_name_that_a_project_installs(
    renders: Renders, answers: dict[str, str]
) -> None:
    project = renders.with_environment(**answers)
    ask = "import importlib.metadata as m, json; print(json.dumps([*m.packages_distributions()]))"
    installed = set(json.loads(project.run(project.python, "-c", ask).splitlines()[-1]))
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
    programs = {path.name for path in project.python.parent.iterdir()} - {project.name, "uvx"}
    unknown = {name for name in programs if not [*HOOK.slug_problems(name)]}
    assert not unknown, f"hooks/pre_gen_project.py has no program {unknown}"


printable = st.characters(exclude_categories=["Cs"]).filter(lambda c: not HOOK.is_unprintable(c))
hostile_pieces = st.sampled_from(
    ['"', "'", "\\", "{", "}", "\n", "#", ": ", "- ", "🚀", "é", "\\u", "$", "`", "%", "</", "&"]
)


def text(limit: int) -> st.SearchStrategy[str]:
    """Texts that a person could mean; most are accepted."""
    pieces = st.lists(st.one_of(hostile_pieces, printable, st.just("word ")), min_size=1, max_size=limit // 5)
    return pieces.map("".join).map(str.strip)


slugs = st.from_regex(r"\A[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,8}){0,3}\Z")
packages = st.from_regex(r"\A[a-z][a-z0-9_]{0,20}\Z")
wild = st.text(max_size=60)

quick = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(quick, max_examples=400)
@given(st.text(max_size=250) | packages)
def test_no_answer_confuses_the_check(answer: str) -> None:
    """Each question is checked by itself, so that one text is an answer to all of them."""
    found = HOOK.problems(dict.fromkeys(GOOD, answer))
    if not [problem for problem in found if problem.startswith("package_name: ")]:
        assert answer.isidentifier()
        assert not keyword.iskeyword(answer)
        assert answer not in sys.stdlib_module_names


@pytest.fixture(scope="module")
def imports(fastapi: Project) -> Iterator[Callable[[Project], bool]]:
    """What tells whether the package of a project can be imported."""
    with subprocess.Popen(
        (fastapi.python, ROOT / "tests/apps/importer.py"),
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as importer:
        assert importer.stdin is not None
        assert importer.stdout is not None

        def imports(project: Project) -> bool:
            assert importer.stdin is not None
            assert importer.stdout is not None
            importer.stdin.write(f"{project.path / 'src'}\t{project.package}\n")
            importer.stdin.flush()
            return importer.stdout.readline() == "0\n"

        yield imports
        importer.stdin.close()


# A bake is too slow to be repeated for a smaller example.
@pytest.mark.slow
@settings(quick, max_examples=SETS, phases=[Phase.explicit, Phase.generate])
@given(
    st.fixed_dictionaries(
        {
            "project_name": text(80),
            "project_description": text(200),
            "project_slug": slugs | wild,
            "package_name": packages | wild,
            "github_owner": st.just("acme"),
            "web_framework": st.sampled_from(["starlette", "fastapi"]),
            "deploy_to": st.sampled_from(TARGETS),
        },
    )
)
@example(GOOD | {"project_name": "\ud83d", "project_description": "\x00"})
def test_any_answers_are_refused_in_words_or_give_valid_files(
    bake: Bake, imports: Callable[[Project], bool], tmp_path: Path, answers: dict[str, str]
) -> None:
    before = everything_under(tmp_path)
    if HOOK.problems(GOOD | answers):
        with pytest.raises(RefusedError, match="  - "):
            bake(**answers)
    else:
        project = bake(**answers)
        for path in project.files():
            check_parses(path)
        assert imports(project), answers
        shutil.rmtree(project.path.parent)
    assert everything_under(tmp_path) == before
