"""schemathesis on what FastAPI documents."""

import os
import subprocess
from pathlib import Path

import pytest
from kit.hostile import SCALE, sound
from kit.project import Project
from kit.tools import tool
from kit.world import World

pytestmark = pytest.mark.slow


def test_what_openapi_documents_holds_for_any_input(fastapi: Project, tmp_path: Path) -> None:
    uvx = tool("uv")
    with World(fastapi, tmp_path) as world:
        service = world.start(None).ready()
        done = subprocess.run(
            (
                *(uvx, "tool", "run", "--from", "schemathesis>=4.32,<5", "schemathesis", "run"),
                *("--checks", "not_a_server_error,response_schema_conformance"),
                *("--max-examples", str(30 * SCALE), "--seed", "7", "--no-color"),
                f"http://127.0.0.1:{service.port()}/openapi.json",
            ),
            cwd=tmp_path,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout
        assert len(sound(service)) > 20
