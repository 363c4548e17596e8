"""envconsul, which is in no package archive: its file by its documentation."""

import re
from pathlib import Path

import hcl2
import pytest
from kit.followers import FIRST, Instance, shows
from kit.formats import declared, formatted, knows, unquoted
from kit.project import Project

pytestmark = pytest.mark.slow


# What its documentation lists.
ENVCONSUL_OPTIONS = (
    "consul vault prefix secret service exec sanitize upcase pristine once wait kill_signal reload_signal "
    "log_level max_stale pid_file syslog"
)
EXEC_OPTIONS = "command timeout splay env reload_signal kill_signal kill_timeout"
PREFIX_OPTIONS = "path no_prefix format key"


def test_the_service_follows_envconsul(project: Project, instance: Instance, tmp_path: Path) -> None:
    folder = formatted(project, "envconsul", tmp_path / "envconsul")
    (file,) = folder.iterdir()
    (prefix,) = hcl2.loads(file.read_text())["prefix"]
    keys = re.findall(r"^# ((?:[a-z-]+)/(APP_[A-Z_]+))$", file.read_text(), re.M)
    named = {name: f"{unquoted(prefix['path'])}/{name}" for name in FIRST}
    assert named.items() <= {name: key for key, name in keys}.items()
    shows(instance.start(FIRST), FIRST)


def test_envconsul_knows_all_that_is_in_its_file_and_gets_no_secret(project: Project, tmp_path: Path) -> None:
    folder = formatted(project, "envconsul", tmp_path / "files")
    variables, files = declared(project)
    (file,) = folder.iterdir()
    config = hcl2.loads(file.read_text())
    assert knows(ENVCONSUL_OPTIONS, config)
    assert "secret" not in config
    assert knows(EXEC_OPTIONS, config["exec"][0])
    assert knows(PREFIX_OPTIONS, config["prefix"][0])
    assert re.findall(rf"^# {project.path.name}/(.+)$", file.read_text(), re.M) == variables
    live = re.sub(r"^#.*$", "", file.read_text(), flags=re.M)
    assert not [secret for secret in files if secret in live]
