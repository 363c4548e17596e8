"""Contract, section 8: direnv: every value, what is required, and the service that it runs."""

from pathlib import Path

import pytest
from kit.followers import FIRST, SECOND, Instance, shows, wants
from kit.formats import Maker, Values, formatted, only_free, thoroughly
from kit.project import ROOT, Bake, Project
from kit.readers import direnv

pytestmark = pytest.mark.slow


@thoroughly(20)
def test_direnv_hands_over_every_value(make: Maker, tmp_path: Path, values: Values) -> None:
    made = make("direnv", values)
    assert not made.refused
    folder = tmp_path / "direnv"
    folder.mkdir(exist_ok=True)
    (folder / ".envrc").write_text(made.file)
    env, said = direnv(folder)
    assert only_free(env) == values, said


def test_a_developer_who_enters_the_folder_is_helped(bake: Bake, tmp_path: Path) -> None:
    project = bake()
    env, said = direnv(project.path)
    assert "the defaults are enough to start" in said
    assert "error" not in said.lower()
    assert Path(env["APP_SECRETS_DIR"]).is_dir()


def test_the_service_follows_direnv(project: Project, instance: Instance, tmp_path: Path) -> None:
    folder = formatted(project, "direnv", tmp_path / "direnv", "--current", **FIRST)
    env, said = direnv(folder)
    assert "error" not in said.lower()
    instance.secrets = folder / "secrets"
    (instance.secrets / "greeting_token").write_text("mine")
    service = instance.start({key: value for key, value in env.items() if key.startswith("APP_")})
    shows(service, FIRST)
    wants(service, "mine")
    # What is one developer's own.
    (folder / ".env").write_text("APP_GREETING_EVENING=13\n")
    env, _ = direnv(folder)
    service = instance.start({key: value for key, value in env.items() if key.startswith("APP_")})
    shows(service, SECOND)


def test_what_is_required_is_asked_for_by_direnv(project: Project, tmp_path: Path) -> None:
    probe = (project.python, "-m", "apps.probe", "config", "--format", "direnv")
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/.envrc").write_text(project.run(*probe, PYTHONPATH=str(ROOT / "tests")))
    _, said = direnv(tmp_path / "probe")
    assert "APP_PROBE_NAME is required; set it in .env: what to call it" in said
    assert (
        "probe_password is required; put it into $APP_SECRETS_DIR/probe_password: a required secret" in said
    )
    assert "error" not in said.lower()
    (tmp_path / "probe/.env").write_text("APP_PROBE_NAME=it\n")
    (tmp_path / "probe/secrets/probe_password").write_text("x")
    assert "required" not in direnv(tmp_path / "probe")[1]
