"""Values of settings that are hard to carry, and the files that `config --format` writes of them."""

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar, cast

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kit.project import ROOT, Project
from kit.service import clean_environment

Values = Mapping[str, str]
Test = TypeVar("Test", bound=Callable[..., None])

# Twelve texts that nobody judges, to be carried by every format.
NAMES = tuple(f"APP_FREE_{letter}" for letter in "ABCDEFGHIJKL")
# What some reader somewhere takes for more than it says.
# fmt: off
HOSTILE = (
    "", " ", "a b", " a", "a ", "\t", "\n", "a\nb", "a\n", "\r\n", "\x0b",
    "\x1f", "\x7f", "\x85", "\u2028", "\ufeff",
    "#", "a#b", "a #b", "'", "it's", '"', '"a"', "'a'", "\\", "\\n", "a\\", "\\'", '\\"', "\\\\", "`", "`id`",
    "$", "$$", "$HOME", "${HOME}", "${A:-b}", "$(id)", "%", "%%", "%n", "%h", "%s", "\\x41",
    "{{.}}", "<no value>",
    "=", "a=b", "=a", "APP_FREE_A=1", "export A=1", "a;b", "a&b", "a|b", "!", "~", "*", "?", "[a]", "{a: b}",
    "-", "- a", "a: b", "a:", "&a", "*a", "!a", "|", ">", "@a", "null", "yes", "010", "1e3", "0x1f", "1:20",
    "é", "天気", "e\u0301", "👩\u200d💻", "\u202e", "\U0010ffff", "a,b", "a/b", "a@b", "(a)", "<a>", "^", "+",
)
# fmt: on
TEXTS = st.lists(
    st.sampled_from(HOSTILE) | st.characters(codec="utf-8", exclude_characters="\0"), max_size=5
).map("".join)
VALUES = st.lists(TEXTS, min_size=len(NAMES), max_size=len(NAMES)).map(
    lambda texts: dict(zip(NAMES, texts, strict=True))
)


def thoroughly(examples: int) -> Callable[[Test], Test]:
    """Give a test all that is hostile, and this many examples made of it and of other characters."""

    def decorate(test: Test) -> Test:
        for start in range(0, len(HOSTILE), len(NAMES)):
            test = example(values=dict(zip(NAMES, HOSTILE[start:], strict=False)))(test)
        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
        limits = settings(max_examples=examples, deadline=None, suppress_health_check=checks)
        return cast(Test, limits(given(values=VALUES)(test)))

    return decorate


def only_free(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name in NAMES}


@dataclass(frozen=True)
class Made:
    """The files of a format, what they carry, and what was refused."""

    files: dict[str, str]
    carried: dict[str, str]
    refused: dict[str, str]

    @property
    def file(self) -> str:
        (content,) = self.files.values()
        return content


class Maker:
    """Makes files of a format, with all values but those that it refuses."""

    def __init__(self, project: Project) -> None:
        self._process = subprocess.Popen(
            (project.python, "-m", "apps.formats"),
            cwd=project.path,
            env=clean_environment(PYTHONPATH=str(ROOT / "tests")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._in, self._out = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)

    def __call__(self, format: str, values: Values) -> Made:
        refused = self._ask(format, values).get("refused", {})
        carried = {name: value for name, value in values.items() if name not in refused}
        return Made(self._ask(format, carried)["files"], carried, refused)

    def _ask(self, format: str, values: Values) -> dict[str, dict[str, str]]:
        print(json.dumps([format, values]), file=self._in, flush=True)
        answer: dict[str, dict[str, str]] = json.loads(self._out.readline())
        return answer

    def end(self) -> None:
        self._in.close()
        self._process.wait(60)
        self._out.close()


def formatted(project: Project, format: str, folder: Path, *options: str, **env: str) -> Path:
    """Write the files of a format by the service's own command."""
    project.run(project.command, "config", "--format", format, "--output", folder, *options, **env)
    return folder


def declared(project: Project) -> tuple[list[str], list[str]]:
    """The variables and secret files that the config classes have, in their order."""
    rows = json.loads(
        project.run(project.path / ".venv/bin" / project.path.name, "config", "--format", "json")
    )
    variables = [row["name"] for row in rows if row["file"] is None]
    return variables, [row["file"] for row in rows if row["file"] is not None]


def knows(documented: str, block: Mapping[str, object]) -> bool:
    """Whether all that the block has is documented; the parser's own additions begin with underscores."""
    return {name for name in block if not name.startswith("__")} <= set(documented.split())


def placeholders(template: str) -> list[str]:
    return re.findall(r"\{\{(.*?)\}\}", template)


def unquoted(value: str) -> str:
    return value.strip('"')
