"""Contract, section 8: confd, which is in no package archive: its back ends are real."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from kit.followers import Instance, follows
from kit.formats import Maker, Values, declared, formatted, knows, placeholders, thoroughly
from kit.project import Project
from kit.readers import confd, environment_d, sourced
from kit.stores import environment, etcd, redis, zookeeper

pytestmark = pytest.mark.slow


# What its documentation lists.
CONFD_OPTIONS = "src dest keys prefix mode owner group uid gid reload_cmd check_cmd"


@thoroughly(20)
def test_confd_renders_every_value_for_a_shell_and_for_systemd(
    make: Maker, tmp_path: Path, values: Values
) -> None:
    files = make("confd", {}).files
    keys = {"/" + name.lower().replace("_", "/"): value for name, value in values.items()}
    file = tmp_path / "free.env"
    file.write_text(confd(files["templates/free.env.tmpl"], keys))
    assert sourced(file) == values
    plain = {key: value for key, value in keys.items() if systemd_shows(value)}
    rendered = confd(files["templates/free.env.tmpl"], plain)
    wanted = {name: value for name, value in values.items() if systemd_shows(value)}
    assert environment_d(rendered, tmp_path) == wanted


def systemd_shows(value: str) -> bool:
    """Whether systemd's tool leaves it as it is, and prints it in a way that is undone here."""
    return bool(value) and "$" not in value and value.replace("\n", "").isprintable()


@pytest.mark.parametrize("back_end", [etcd, redis, zookeeper, environment], ids=lambda given: given.__name__)
def test_the_service_follows_what_confd_finds(
    project: Project, instance: Instance, tmp_path: Path, back_end: Any
) -> None:
    folder = formatted(project, "confd", tmp_path / "confd")
    (resource_file,) = (folder / "conf.d").iterdir()
    resource = tomllib.loads(resource_file.read_text())["template"]
    template = (folder / "templates" / resource["src"]).read_text()
    with back_end(tmp_path) as (store, stored):

        def change(values: Values) -> None:
            for name, value in values.items():
                store(f"{resource['prefix']}/{name.lower().replace('_', '/')}", value)
            found: dict[str, str] = {}
            for key in resource["keys"]:
                found |= stored(resource["prefix"] + key)
            known = {key.removeprefix(resource["prefix"]): value for key, value in found.items()}
            instance.file.write_text(confd(template, known))

        follows(instance, change)


def test_confd_knows_all_that_is_in_its_files(project: Project, tmp_path: Path) -> None:
    folder = formatted(project, "confd", tmp_path / "files")
    variables, files = declared(project)
    (file,) = (folder / "conf.d").iterdir()
    config = tomllib.loads(file.read_text())
    assert config.keys() == {"template"}
    assert knows(CONFD_OPTIONS, config["template"])
    template = (folder / "templates" / config["template"]["src"]).read_text()
    keys = ["/" + name.lower().replace("_", "/") for name in variables]
    for function in ("exists", "getv"):
        assert re.findall(rf'\b{function} "([^"]+)"', template) == keys
    assert not [key for key in keys if "_" in key or any(other.startswith(f"{key}/") for other in keys)]
    shape = {re.sub(r'"/[^"]+"', "KEY", found) for found in placeholders(template.partition("{{end}}")[2])}
    assert shape == {"if exists KEY", 'template "quoted" (getv KEY)', "end"}
    assert not [secret for secret in files if f'"{secret}' in template]
