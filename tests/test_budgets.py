"""How much a generated service holds, and what its code never does.

A team has to read what it adopts. Where a limit is reached, something has to go; the limit stays.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from kit.imports import circle, graph, modules
from kit.project import COMBINATIONS, FRAMEWORKS, ROOT, TARGETS, Project, Renders, combinations

# What there is today; only a fault that is mended may raise it.
# The aims: 80 files, 4,700 lines, 2,900 lines of chassis.
MOST_FILES = 79
MOST_LINES = 6136
MOST_LINES_OF_CHASSIS = 4160
# What would go from a default service if workers and commands went, by the patterns below.
MOST_LINES_OF_WORK = 150
# What the answer systemd adds to the chassis.
MOST_LINES_FOR_SYSTEMD = 60
MOST_LINES_OF_ITS_TESTS = 450
MOST_LINES_OF_A_MODULE = 250
# What the answer postgresql adds, its example and its tests included. The aim: 600.
MOST_LINES_OF_A_DATABASE = 670
MOST_OVERRIDES = 4

# Where workers and commands stand; each pattern has one place, and all of its lines count.
WORK = {
    "chassis/workers.py": [r"(?s)\A.*\Z"],
    "chassis/run.py": [
        r"from argparse .*\n",
        r"(?s)def run_command\(.*?\n\n\n",
        r"(?s) +names = \[worker\].*? else:\n",
    ],
    "chassis/service.py": [
        r"from argparse .*\n",
        r"from \.workers .*\n",
        r"(?s)@attrs\.frozen\nclass Command:.*?\n\n\n",
        r" +workers: Its .*\n",
        r" +commands: Its .*\n",
        r" +workers: Mapping.*\n",
        r" +commands: Mapping.*\n",
    ],
    "chassis/cli.py": [
        r" +if service\.workers:\n.*\n",
        r" +for own, command in .*\n.*\n",
        r" +if chosen\.chassis_command in service\.commands:\n.*\n",
    ],
    "chassis/__init__.py": [r"from \.workers .*\n"],
    "chassis/lifecycle.py": [r" +self\.stuck.*\n"],
    "chassis/admin/endpoints.py": [r" +stuck = .*\n"],
    "__main__.py": [r" +commands=.*\n +workers=.*\n"],
}

# What Python documents as a hook is there to be set.
HOOKS = {
    *("sys.excepthook", "sys.unraisablehook", "threading.excepthook", "warnings.showwarning"),
    *("logging.raiseExceptions", "logging.lastResort"),
}
# What begins with an underscore and is documented all the same.
DOCUMENTED = {"os._exit", "sys._current_frames"}
CHANGES = {"__setitem__", "__delitem__", "clear", "pop", "popitem", "setdefault", "update"}


@pytest.fixture(
    params=combinations(f"{framework}-{target}" for framework in FRAMEWORKS for target in TARGETS)
)
def service(request: pytest.FixtureRequest, renders: Renders) -> Project:
    return renders.get(**COMBINATIONS[request.param])


def lines(paths: list[Path]) -> dict[Path, int]:
    return {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}


def largest(counted: Mapping[Path, int]) -> str:
    first = sorted(counted.items(), key=lambda item: -item[1])[:8]
    return f"{sum(counted.values())} lines; " + ", ".join(f"{path.name} {count}" for path, count in first)


def test_a_service_is_small(service: Project) -> None:
    counted = lines(service.files())
    assert len(counted) <= MOST_FILES
    assert sum(counted.values()) <= MOST_LINES, largest(counted)


def test_the_chassis_and_its_tests_are_small(service: Project) -> None:
    for folder, most in (
        (f"src/{service.package}/chassis", MOST_LINES_OF_CHASSIS),
        ("tests/chassis", MOST_LINES_OF_ITS_TESTS),
    ):
        counted = lines([*(service.path / folder).rglob("*.py")])
        added = {path: counted.pop(path) for path in [*counted] if path.name == "systemd.py"}
        assert sum(counted.values()) <= most, f"{folder}: {largest(counted)}"
        assert sum(added.values()) <= MOST_LINES_FOR_SYSTEMD


def test_workers_and_commands_are_small(service: Project) -> None:
    counted: Counter[str] = Counter()
    for name, patterns in WORK.items():
        text = (service.path / "src" / service.package / name).read_text(encoding="utf-8")
        for pattern in patterns:
            found = re.findall(pattern, text)
            assert len(found) == 1, f"{name}: {pattern} is to match once, and matches {found}"
            counted[name] += found[0].count("\n")
    assert counted.total() <= MOST_LINES_OF_WORK, counted


@pytest.mark.parametrize(
    ("framework", "target"), [("starlette", "kubernetes"), ("starlette", "swarm"), ("fastapi", "systemd")]
)
def test_a_database_adds_little(renders: Renders, framework: str, target: str) -> None:
    service = renders.get(web_framework=framework, deploy_to=target)
    with_it = renders.get(web_framework=framework, deploy_to=target, database="postgresql")
    added = sum(lines(with_it.files()).values()) - sum(lines(service.files()).values())
    assert 0 < added <= MOST_LINES_OF_A_DATABASE, largest(lines(with_it.files()))
    assert not [
        path for path, count in lines([*with_it.path.rglob("*.py")]).items() if count > MOST_LINES_OF_A_MODULE
    ]


def test_a_module_is_short(service: Project) -> None:
    counted = lines([*service.path.rglob("*.py")])
    long = {str(path.relative_to(service.path)): count for path, count in counted.items()}
    assert not {path: count for path, count in long.items() if count > MOST_LINES_OF_A_MODULE}


def test_no_imports_go_in_a_circle(service: Project) -> None:
    imports = graph(service.path / "src" / service.package)
    assert len(imports) > 20, "this check reads too few modules to mean anything"
    assert not circle(imports)


def test_a_circle_is_seen_though_it_is_for_types_alone(tmp_path: Path) -> None:
    (tmp_path / "p" / "q").mkdir(parents=True)
    for name, text in {
        "__init__": "from .a import f",
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .q import b",
        "q/__init__": "",
        "q/b": "def g():\n    from ..a import f",
    }.items():
        (tmp_path / "p" / f"{name}.py").write_text(text)
    assert circle(graph(tmp_path / "p")) == ["p.a", "p.q.b", "p.a"]


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for such an expression; otherwise what has no dots."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{dotted(node.value)}.{node.attr}"
        case ast.Call(func=ast.Name(id="vars")):
            return "vars()"
    return ""


class Forbidden(ast.NodeVisitor):
    """Finds what changes other modules, other classes or the collector, in one module."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._foreign: dict[str, str] = {}

    def _note(self, node: ast.stmt | ast.expr, what: str) -> None:
        self.found.append(f"line {node.lineno}: {what}")

    def _full(self, node: ast.expr) -> str:
        """Return the dotted name with the imported module's own name; empty if it is nothing imported."""
        first, dot, rest = dotted(node).partition(".")
        return self._foreign[first] + dot + rest if first in self._foreign else ""

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._foreign[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else (alias.name.partition(".")[0])
            )
            if alias.name == "gc":
                self._note(node, "the garbage collector is used")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level:
            return
        for alias in node.names:
            self._foreign[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if node.module == "gc":
                self._note(node, "the garbage collector is used")
            if alias.name.startswith("_"):
                self._note(node, f"{node.module}.{alias.name} is not public")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        full = self._full(node)
        if isinstance(node.ctx, ast.Load):
            if node.attr.startswith("_") and not node.attr.startswith("__") and full not in {"", *DOCUMENTED}:
                self._note(node, f"{full} is not public")
        elif node.attr == "__class__":
            self._note(node, "the class of an object is changed")
        elif full and full not in HOOKS:
            self._note(node, f"{full} is set")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.ctx, ast.Load) and self._is_namespace(node.value):
            self._note(node, f"{dotted(node.value)} is changed")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in CHANGES:
                if self._is_namespace(value):
                    self._note(node, f"{dotted(value)} is changed")
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[target, name, *_]):
                if self._full(target):
                    self._note(node, f"an attribute of {self._full(target)} is set")
                if isinstance(name, ast.Constant) and name.value == "__class__":
                    self._note(node, "the class of an object is changed")
        self.generic_visit(node)

    def _is_namespace(self, node: ast.expr) -> bool:
        name = dotted(node)
        return name == "vars()" or name.endswith(".__dict__") or self._full(node) == "sys.modules"


def forbidden(tree: ast.Module) -> list[str]:
    visitor = Forbidden()
    visitor.visit(tree)
    return visitor.found


def test_the_service_changes_nothing_that_is_not_its_own(service: Project) -> None:
    trees = modules(service.path / "src" / service.package)
    found = {name: forbidden(tree) for name, tree in trees.items()}
    assert not {name: notes for name, notes in found.items() if notes}


@pytest.mark.parametrize(
    "text",
    [
        "import sys\nsys.modules['a'] = 1",
        "import sys\nsys.modules.setdefault('a', 1)",
        "from sys import modules\ndel modules['a']",
        "def f(a): a.__class__ = int",
        "def f(a): setattr(a, '__class__', int)",
        "import gc",
        "from gc import freeze",
        "import uvicorn\nvars(uvicorn)['Config'] = 1",
        "import uvicorn\nvars(uvicorn).setdefault('Config', 1)",
        "import uvicorn\nuvicorn.__dict__.update(a=1)",
        "import uvicorn.config\nuvicorn.config.LOGGING = {}",
        "from uvicorn import config as c\nsetattr(c, 'LOGGING', {})",
        "from uvicorn import Server\nServer.startup = None",
        "import asyncio\nasyncio.tasks._all_tasks",
        "from asyncio import _set_running_loop",
    ],
)
def test_what_is_forbidden_is_seen(text: str) -> None:
    assert forbidden(ast.parse(text))


def test_what_is_a_services_own_is_allowed() -> None:
    text = """
import os, sys
from .logs import LEVELS
class A:
    def f(self): self._x = vars(self).copy(); LEVELS.y = os._exit; sys.excepthook = self.f
"""
    assert forbidden(ast.parse(text)) == []


def imports_of_the_team(service: Project) -> Iterator[str]:
    for path in (service.path / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and ".chassis" in (node.module or ""):
                yield f"{path.name}: {node.module}"


def test_the_teams_tests_use_the_door_alone(service: Project) -> None:
    # In the package itself, lint-imports says so.
    found = set(imports_of_the_team(service))
    assert found
    assert not [name for name in found if not name.endswith(f": {service.package}.chassis")]


@pytest.mark.slow
def test_few_methods_that_others_do_not_document_are_overridden(rendered: Project) -> None:
    program = ROOT / "tests" / "apps" / "overrides.py"
    found = json.loads(rendered.run(rendered.python, program, f"{rendered.package}.chassis"))
    assert len(found) <= MOST_OVERRIDES, found
    assert not [name for name in found if ".chassis.http.connection." not in name]
