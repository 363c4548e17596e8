"""consul-template, which is in no package archive; OpenBao's agent has a copy of its engine."""

import re
from collections.abc import Iterator
from pathlib import Path

import hcl2
import pytest
from kit.followers import FIRST, SECOND, STAYS, Instance, hangup, shows, wants
from kit.formats import Maker, Values, declared, formatted, knows, placeholders, thoroughly, unquoted
from kit.project import Project
from kit.readers import sourced
from kit.service import wait_for
from kit.vault import Vault, template_block

pytestmark = pytest.mark.slow


# What its documentation lists.
TEMPLATE_OPTIONS = (
    "source destination create_dest_dirs contents command command_timeout exec backup error_on_missing_key "
    "error_fatal perms user group left_delimiter right_delimiter function_denylist sandbox_path wait"
)
EXEC_OPTIONS = "command timeout splay env reload_signal kill_signal kill_timeout"
CONSUL_TEMPLATE_OPTIONS = (
    "consul vault nomad template exec deduplicate syslog telemetry wait once reload_signal kill_signal "
    "dump_signal max_stale block_query_wait log_level log_file pid_file template_error_fatal"
)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    folder = tmp_path / "vault"
    folder.mkdir()
    with Vault(folder).server() as vault:
        yield vault


def from_vault(template: str, name: str) -> str:
    """Let a template of Consul's keys find them in a secret of Vault's: the agent has no Consul."""
    definition, end, body = template.partition("{{end -}}")
    assert end
    body = re.sub(r'keyExists "[^"]+/([^"/]+)"', r'ne (printf "%v" (index $kv "\1")) "<nil>"', body)
    body = re.sub(r'\(key "[^"]+/([^"/]+)"\)', r'(index $kv "\1")', body)
    return (
        f'{definition}{end}{{{{with secret "secret/data/{name}"}}}}{{{{$kv := .Data.data}}}}{body}{{{{end}}}}'
    )


@thoroughly(10)
def test_consul_template_renders_every_value_for_a_shell(
    make: Maker, vault: Vault, tmp_path: Path, values: Values
) -> None:
    source, destination = tmp_path / "free.env.ctmpl", tmp_path / "free.env"
    source.write_text(from_vault(make("consul-template", {}).files["free.env.ctmpl"], "free"))
    vault.keep("free", values)
    vault.render(template_block(source, destination))
    assert sourced(destination) == values


def test_the_service_follows_what_consul_template_renders(
    project: Project, instance: Instance, vault: Vault, tmp_path: Path
) -> None:
    folder, name = formatted(project, "consul-template", tmp_path / "consul-template"), project.path.name
    config = hcl2.loads((folder / f"{name}.hcl").read_text())
    (block,) = config["template"]
    assert template_block(Path("x"), Path("y")).count("=") == len([key for key in block if key[0] != "_"])
    source = folder / f"{name}.env.ctmpl"
    source.write_text(from_vault(source.read_text(), f"{name}-settings"))
    token = instance.secrets / "greeting_token"
    blocks = template_block(folder / "greeting_token.ctmpl", token) + template_block(source, instance.file)
    vault.keep(f"{name}-settings", FIRST)
    vault.keep(name, {"greeting_token": 'old "token"'})
    with vault.rendering(blocks, ready=lambda: (token.stat(), instance.file.stat())):
        assert token.stat().st_mode & 0o777 == 0o400
        service = instance.start()
        shows(service, FIRST)
        wants(service, 'old "token"')
        vault.keep(f"{name}-settings", SECOND)
        # As `greeting_token=@FILE` keeps it.
        vault.keep(name, {"greeting_token": "new\n"})
        wait_for(
            lambda: token.read_text() == "new\n" and 'EVENING="13"' in instance.file.read_text(),
            "a new rendering",
        )
        assert token.stat().st_mode & 0o777 == 0o400
        # What `reload_signal` sends.
        hangup(service, "secrets reloaded")
        wants(service, "new")
        assert "APP_GREETING_EVENING" in service.lines(STAYS)[0]["settings"]
        shows(service, FIRST)
        service.end()
        service = instance.start()
        shows(service, SECOND)


def test_a_secret_that_is_missing_in_the_vault_is_not_rendered(
    project: Project, vault: Vault, tmp_path: Path
) -> None:
    folder = formatted(project, "consul-template", tmp_path / "consul-template")
    vault.keep(project.path.name, {"admin_token": "there"})
    there, absent = tmp_path / "there", tmp_path / "absent"
    blocks = template_block(folder / "greeting_token.ctmpl", absent)

    def complains() -> None:
        if not re.search(r"has no entry for key .*greeting_token", vault.agent_log.read_text()):
            raise FileNotFoundError

    with vault.rendering(blocks, ready=complains):
        assert not absent.exists()
    vault.render(template_block(folder / "admin_token.ctmpl", there))
    assert there.read_text() == "there"


def test_consul_template_knows_all_that_is_in_its_files(project: Project, tmp_path: Path) -> None:
    folder, name = formatted(project, "consul-template", tmp_path / "files"), project.path.name
    variables, files = declared(project)
    content = (folder / f"{name}.hcl").read_text()
    # With the templates of optional secrets too.
    live = re.sub(r"^#(template \{|  .*|\})$", r"\1", content, flags=re.M)
    config = hcl2.loads(live)
    assert knows(CONSUL_TEMPLATE_OPTIONS, config)
    assert unquoted(config["kill_signal"]) == "SIGTERM"
    (run_block,) = config["exec"]
    assert knows(EXEC_OPTIONS, run_block)
    assert unquoted(run_block["kill_signal"]) == "SIGTERM"
    assert unquoted(run_block["reload_signal"]) == "SIGHUP"
    sources = []
    for block in config["template"]:
        assert knows(TEMPLATE_OPTIONS, block)
        assert unquoted(block["perms"]) == "0400"
        assert block["error_on_missing_key"] is True
        sources.append(Path(unquoted(block["source"])).name)
    assert sources == [f"{name}.env.ctmpl", *(f"{file}.ctmpl" for file in files)]
    assert {path.name for path in folder.iterdir()} == {f"{name}.hcl", *sources}
    settings = (folder / f"{name}.env.ctmpl").read_text()
    for function in ("keyExists", "key"):
        assert re.findall(rf'\b{function} "{name}/([^"]+)"', settings) == variables
    for file in files:
        assert placeholders((folder / f"{file}.ctmpl").read_text()) == [
            f'with secret "secret/data/{name}"',
            f".Data.data.{file}",
            # The newline after it is not part of the secret.
            "end -",
        ]
