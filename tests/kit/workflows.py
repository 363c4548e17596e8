"""Reads what a project's workflows run, so that tests run the same."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


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
