"""OpenBao, and its agent, whose templates are rendered by a copy of consul-template's engine."""

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.formats import Values
from kit.readers import run, running
from kit.service import free_port
from kit.tools import tool

VAULT_TOKEN = "root"


class Vault:
    """OpenBao, and its agent, whose templates are rendered by consul-template's engine."""

    def __init__(self, folder: Path) -> None:
        self.address = f"http://127.0.0.1:{free_port()}"
        self._folder, self._program = folder, tool("bao")
        self._env = {"HOME": str(folder)}
        self.agent_log = folder / "agent.log"

    def ask(self, path: str, body: object = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Vault-Token": VAULT_TOKEN, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/v1/{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=5):
            pass

    def keep(self, name: str, values: Values) -> None:
        self.ask(f"secret/data/{name}", {"data": values})

    @contextmanager
    def server(self) -> Iterator["Vault"]:
        listen = f"-dev-listen-address={self.address.removeprefix('http://')}"
        command = (self._program, "server", "-dev", f"-dev-root-token-id={VAULT_TOKEN}", listen)
        ready = lambda: self.ask("secret/config")  # noqa: E731
        with running(*command, log=self._folder / "vault.log", ready=ready, env=self._env):
            yield self

    def agent(self, templates: str, *, once: bool) -> tuple[str | Path, ...]:
        """Write an agent's configuration with these template blocks; return the command that runs it."""
        (self._folder / "token").write_text(VAULT_TOKEN)
        (self._folder / "agent.hcl").write_text(
            f"exit_after_auth = {str(once).lower()}\n"
            f'vault {{ address = "{self.address}" }}\n'
            f'template_config {{ static_secret_render_interval = "1s" }}\n'
            "auto_auth { method {\n"
            f'  type = "token_file"\n  config = {{ token_file_path = "{self._folder / "token"}" }}\n'
            f"}} }}\n{templates}\n"
        )
        return (self._program, "agent", f"-config={self._folder / 'agent.hcl'}")

    def render(self, templates: str) -> None:
        """Render what there is now."""
        run(*self.agent(templates, once=True), env=self._env)

    @contextmanager
    def rendering(self, templates: str, ready: Callable[[], object]) -> Iterator[None]:
        """Render again and again."""
        command = self.agent(templates, once=False)
        with running(*command, log=self.agent_log, ready=ready, env=self._env):
            yield


def template_block(source: Path, destination: Path) -> str:
    """A template's block as the service writes it, with other places."""
    return (
        f'template {{\n  source = "{source}"\n  destination = "{destination}"\n'
        '  perms = "0400"\n  error_on_missing_key = true\n}\n'
    )


def from_vault(template: str, name: str) -> str:
    """Let a template of Consul's keys find them in a secret of Vault's: the agent has no Consul."""
    definition, end, body = template.partition("{{end -}}")
    assert end
    body = re.sub(r'keyExists "[^"]+/([^"/]+)"', r'ne (printf "%v" (index $kv "\1")) "<nil>"', body)
    body = re.sub(r'\(key "[^"]+/([^"/]+)"\)', r'(index $kv "\1")', body)
    return (
        f'{definition}{end}{{{{with secret "secret/data/{name}"}}}}{{{{$kv := .Data.data}}}}{body}{{{{end}}}}'
    )
