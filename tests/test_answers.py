"""Any answers: refused in words with nothing left behind, or a project whose files are valid."""

import json
import keyword
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from kit.hooks import HOOK
from kit.parsing import check_parses
from kit.project import ROOT, TARGETS, Bake, Project, RefusedError
from kit.service import clean_environment

# A bake takes its time: few in a usual run, all in `make hostile`.
SETS = 500 if "HOSTILE_SCALE" in os.environ else 40

GOOD = {
    "project_name": "Billing",
    "project_description": "Sends bills.",
    "project_slug": "billing-api",
    "package_name": "billing_api",
    "github_owner": "acme",
}

REFUSED = {
    "project_name": [
        "", " ", "a" * 81, " a", "a ", "a\nb", "a\x00b", "a\x7f", "\udc80", "\u2028", "\ufffe", "\u202e",
    ],
    "project_description": ["", "a" * 201, "a\tb", "{{ x }}", "{% x %}", "{# x #}"],
    "project_slug": [
        "", ".", "..", "/", "../x", "../../a/b/c", "a/b/c", "/tmp/x", "a\\b", "a\x00b", "a" * 41, "a" * 300,
        "Billing", "billing_api", "-a", "a-", "a--b", "3a", "é", "a b", "~", "$HOME", "con\n",
        "structlog", "environ-config", "uv",
    ],
    "package_name": [
        "", "..", "../x", "a/b", "a-b", "Billing", "_a", "3a", "é", "a.b", "a" * 41, "class", "match",
        "json", "test", "compression", "sitecustomize", "starlette", "fastapi", "environ", "attr", "yaml",
        "tests", "chassis", "src",
    ],
    "github_owner": ["", "-a", "a-", "a--b", "a_b", "a/b", "a" * 40, "é", "@acme", "acme\n"],
}  # fmt: skip

ACCEPTED = {
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
}  # fmt: skip


def listed(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(question, answer) for question, answers in table.items() for answer in answers]


def everything_under(folder: Path) -> set[Path]:
    return {*folder.rglob("*")}


@pytest.mark.parametrize(("question", "answer"), listed(REFUSED))
def test_a_bad_answer_is_refused_in_words(question: str, answer: str) -> None:
    found = HOOK.problems(GOOD | {question: answer})
    assert found
    assert all(problem.startswith(f"{question}: ") for problem in found)


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
    bad = {question: answers[0] for question, answers in REFUSED.items()}
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
    assert len(asked) <= 8
    assert prompts.keys() == asked.keys()
    for name, default in asked.items():
        if isinstance(default, list):
            assert prompts[name].keys() == {"__prompt__", *default}


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


@settings(quick, max_examples=1000)
@given(st.fixed_dictionaries({question: st.text(max_size=250) for question in GOOD}))
def test_no_answer_confuses_the_check(answers: dict[str, str]) -> None:
    found = HOOK.problems(answers)
    if not found:
        assert answers["package_name"].isidentifier()
        assert not keyword.iskeyword(answers["package_name"])
        assert answers["package_name"] not in sys.stdlib_module_names


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
    if HOOK.problems(answers):
        with pytest.raises(RefusedError, match="  - "):
            bake(**answers)
    else:
        project = bake(**answers)
        for path in project.files():
            check_parses(path)
        assert imports(project), answers
        shutil.rmtree(project.path.parent)
    assert everything_under(tmp_path) == before
