"""Contract, section 8: drop-ins for systemd, by its own parser."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from kit.followers import FIRST
from kit.formats import Maker, Values, declared, formatted, thoroughly
from kit.project import Project, Renders
from kit.readers import run
from kit.tools import tool

pytestmark = pytest.mark.slow


@thoroughly(20)
def test_a_unit_carries_every_value(make: Maker, open_folder: Path, values: Values) -> None:
    made = make("systemd", values)
    assert made.refused.keys() == {name for name, value in values.items() if has_noncharacter(value)}
    (open_folder / "free.service").write_text("[Service]\nExecStart=/bin/true\n")
    (open_folder / "free.service.d").mkdir(exist_ok=True)
    (open_folder / "free.service.d/settings.conf").write_text(made.file)
    told = dump(open_folder)
    found = {name: f"\t\tEnvironment: {name}={value}\n" in told for name, value in made.carried.items()}
    assert all(found.values()), (found, told)


def has_noncharacter(value: str) -> bool:
    return any(ord(c) % 0x10000 >= 0xFFFE or c in map(chr, range(0xFDD0, 0xFDF0)) for c in value)


def dump(units: Path) -> str:
    """What systemd makes of the unit free.service, as it would run it."""
    program = tool("systemd")
    (units / "home").mkdir(exist_ok=True, mode=0o777)
    (units / "home").chmod(0o777)
    env = {"HOME": str(units / "home"), "XDG_RUNTIME_DIR": str(units), "SYSTEMD_UNIT_PATH": f"{units}:"}
    # It doesn't test as root.
    other = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    return run(*other, program, "--test", "--user", "--unit=free.service", "--no-pager", env=env)


def test_systemd_accepts_the_unit_with_the_drop_in(
    renders: Renders, project: Project, open_folder: Path
) -> None:
    analyze = tool("systemd-analyze")
    (unit,) = (renders.get(deploy_to="systemd").path / "deploy/systemd").glob("*@.service")
    # The service is not installed here.
    text = re.sub(r"^ExecStart=.*", "ExecStart=/bin/true", unit.read_text(), flags=re.M)
    (open_folder / unit.name).write_text(text)
    folder = formatted(project, "systemd", open_folder / f"{unit.name}.d", "--current", **FIRST)
    instance = unit.name.replace("@.", "@8000.")
    env = {"SYSTEMD_UNIT_PATH": f"{open_folder}:", "PATH": os.environ["PATH"]}

    def verify() -> str:
        command = (analyze, "verify", "--man=no", str(open_folder / instance))
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        return f"{done.returncode} " + "".join(
            line for line in done.stderr.splitlines() if str(open_folder) in line or unit.name[:-9] in line
        )

    (open_folder / instance).symlink_to(unit.name)
    assert verify() == "0 "
    (drop_in,) = folder.iterdir()
    for file in declared(project)[1]:
        assert f"\nLoadCredential={file}:{project.path.name}.{file}\n" in drop_in.read_text()
    # That it would say so, were there something wrong.
    drop_in.write_text(drop_in.read_text().replace("LoadCredential=", "LoadCredentials="))
    assert "LoadCredentials" in verify()
