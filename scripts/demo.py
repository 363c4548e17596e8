"""Bake a service with the default answers, start it, and say what to open; Ctrl-C stops it.

DEMO_PORT and DEMO_ADMIN_PORT choose the ports; otherwise 8000 and 8001 are used, or free ones instead.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from urllib.error import HTTPError
from urllib.request import urlopen

TEMPLATE = Path(__file__).parents[1]
START_SECONDS = 60


class StoppedError(Exception):
    """The person wants to stop."""


def stop(_signal: int, _frame: FrameType | None) -> None:
    raise StoppedError


def choose_port(variable: str, usual: int) -> int:
    if given := os.environ.get(variable):
        if not given.isdecimal():
            sys.exit(f"{variable}: {given!r} is no port; use a number")
        return int(given)
    for port in (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise OSError("no port is free")


def bake(folder: Path) -> Path:
    """Render afresh, as a person would; what the demo before left is removed."""
    print("Baking a service with the default answers, and locking its dependencies ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = (sys.executable, "-m", "cookiecutter", "--no-input", "--default-config", "-o", folder, TEMPLATE)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()
    return next(path for path in folder.iterdir() if path.is_dir())


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1):
            return True
    except HTTPError:
        return True
    except OSError:
        return False


def serve(project: Path, uv: str) -> int:
    port, admin_port = choose_port("DEMO_PORT", 8000), choose_port("DEMO_ADMIN_PORT", 8001)
    package = next((project / "src").iterdir()).name
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APP_")}
    environment |= {"APP_HTTP_PORT": str(port), "APP_ADMIN_PORT": str(admin_port)}
    traffic, admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
    urls = {
        f"{traffic}/greetings/you": "the sample route",
        f"{traffic}/-/ready": "may it get traffic?",
        f"{admin}/-/ready": "the same, with every check",
        f"{admin}/": "what it is, has, and waits for: start here",
        f"{admin}/metrics": "metrics for Prometheus",
    }
    # A session of its own: Ctrl-C in the terminal must reach the service once, from here.
    process = subprocess.Popen(
        (uv, "run", "--no-sync", "python", "-m", package),
        cwd=project,
        env=environment,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not all(answers(f"{listener}/-/ready") for listener in (traffic, admin)):
            if process.poll() is not None or time.monotonic() > deadline:
                print("The service did not start; its own lines above say why.", file=sys.stderr)
                return 1
            time.sleep(0.02)
        print("\nThe service runs. Open:\n")
        for url, meaning in urls.items():
            print(f"  {url:<34}  {meaning}")
        print(f"\nIts source is in {project}\nCtrl-C stops it.\n", flush=True)
        return process.wait()
    except StoppedError:
        print("\nStopping ...", flush=True)
        process.terminate()
        return process.wait(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not uv:
        print("The demo needs uv; `make demo` installs it.", file=sys.stderr)
        return 1
    # The hook that locks finds this uv too.
    os.environ["PATH"] = f"{Path(uv).parent}{os.pathsep}{os.environ['PATH']}"
    for name in ("VIRTUAL_ENV", "UV_PROJECT", "UV_WORKING_DIR", "UV_FROZEN", "UV_LOCKED"):
        os.environ.pop(name, None)
    try:
        project = bake(Path(sys.argv[1]) if len(sys.argv) > 1 else TEMPLATE / "build" / "demo")
        print("Installing what the service needs ...", flush=True)
        subprocess.run((uv, "sync", "--quiet", "--no-dev"), cwd=project, check=True)
        return serve(project.resolve(), uv)
    except StoppedError:
        return 130
    except subprocess.CalledProcessError as error:
        return int(error.returncode)


if __name__ == "__main__":
    sys.exit(main())
