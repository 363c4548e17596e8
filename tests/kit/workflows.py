"""Reads what a project's workflows run, so that tests run the same."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit.engine import Engine, machine
from kit.project import Project
from kit.service import clean_environment
from kit.tools import tool


@dataclass(frozen=True)
class Step:
    workflow: str
    job: str
    run: str
    environment: dict[str, str] = field(default_factory=dict)


def steps(project: Path, workflow: str = "*", job: str = "") -> list[Step]:
    """Return the steps that are commands, in order; of one *workflow* and one *job* of it, if named."""
    found = []
    for path in sorted((project / ".github" / "workflows").glob(f"{workflow}.yml")):
        document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, each in document["jobs"].items():
            if name == job or not job:
                found += [
                    Step(
                        path.stem,
                        name,
                        step["run"].strip(),
                        document.get("env", {}) | each.get("env", {}) | step.get("env", {}),
                    )
                    for step in each.get("steps", ())
                    if "run" in step
                ]
    return found


def run(project: Project | Path, step: Step, *folders: Path, **environment: str) -> str:
    """Run a step as GitHub does: bash, that ends at the first command which fails."""
    cwd = project if isinstance(project, Path) else project.path
    literal = {name: value for name, value in step.environment.items() if "${{" not in value}
    path = os.pathsep.join((*map(str, folders), str(tool("uv").parent), os.environ["PATH"]))
    done = subprocess.run(
        ("bash", "-e", "-c", step.run),
        cwd=cwd,
        env=clean_environment(**literal | {"PATH": path} | environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode:
        pytest.fail(
            f"{step.workflow}/{step.job}: {step.run}\nexit {done.returncode}\n{done.stdout}", pytrace=False
        )
    return done.stdout


def docker_here(engine: Engine, folder: Path) -> Path:
    """Make a folder with a `docker` that builds with this machine's network and CA bundle.

    It has a name of this engine's own for the image `candidate`, since other test runs build one, too.
    """
    more = " ".join(machine())
    script = folder / "bin" / "docker"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/bash\n"
        "words=(); for word; do\n"
        f'[[ $word != candidate ]] || word={engine.candidate}; words+=("$word"); done\n'
        'set -- "${words[@]}"\n'
        f'case "$1 $2" in "buildx build") set -- buildx build {more} "${{@:3}}";;\n'
        f'"build "*) set -- build {more} "${{@:2}}";; esac\n'
        f'exec {engine.docker} "$@"\n'
    )
    script.chmod(0o755)
    return script.parent
