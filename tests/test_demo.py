"""`make demo`: the default service runs and answers on both ports, until Ctrl-C."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from kit.project import ROOT
from kit.service import clean_environment, free_ports


@pytest.mark.slow
@pytest.mark.usefixtures("uv")
def test_the_demo_answers_on_both_ports_until_ctrl_c(tmp_path: Path) -> None:
    port, admin_port = map(str, free_ports(2))
    demo = subprocess.Popen(
        (sys.executable, "-u", ROOT / "scripts" / "demo.py", tmp_path / "demo"),
        # uv is told of another project, which is not meant.
        env=clean_environment(DEMO_PORT=port, DEMO_ADMIN_PORT=admin_port, UV_PROJECT="/", UV_FROZEN="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert demo.stdout is not None
        said = ""
        while "Ctrl-C stops it" not in said:
            line = demo.stdout.readline()
            assert line, f"the demo ended by itself:\n{said}"
            said += line
        urls = re.findall(r"^  (http://\S+)", said, flags=re.MULTILINE)
        assert {urlsplit(url).port for url in urls} == {int(port), int(admin_port)}
        for url in urls:
            with urlopen(url, timeout=30) as answer:
                assert answer.status == 200
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=30)
        assert demo.returncode == 0, said + rest
    finally:
        demo.kill()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0, "the service still listens"
