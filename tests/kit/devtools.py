"""A page as Chromium has it at a width that no window of a desktop can have, by the DevTools protocol."""

import base64
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 120


@dataclass(frozen=True)
class Page:
    """What was seen: the document, what stands in the console, the widths in pixels, and a picture."""

    dom: str
    console: Sequence[str]
    inner_width: int
    scroll_width: int
    picture: bytes


class DevTools:
    """The protocol over the pipes of a browser that was started for it."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = os.fdopen(reader, "rb"), os.fdopen(writer, "wb")
        self._number, self._buffer = 0, b""
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []

    def attach(self, target: str) -> None:
        """Talk to this page from now on."""
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method, and return its result; meanwhile, events are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, event: str) -> None:
        """Wait until there was such an event."""
        while not any(one.get("method") == event for one in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = self._reader.read1(1 << 16)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def close(self) -> None:
        self._writer.close()
        self._reader.close()


def look(command: Sequence[str | Path], url: str, width: int, scheme: str) -> Page:
    """Open *url* in the browser that *command* starts, *width* pixels wide, in a color *scheme*."""
    to_browser, writer = os.pipe()
    reader, from_browser = os.pipe()
    # The protocol is on the descriptors 3 and 4.
    redirected = ("bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", *command)
    # It ends when the pipes are closed; should it hang, so does no test.
    ended_in_time = ("timeout", f"{LIMIT_SECONDS}", *redirected)
    browser = subprocess.Popen(
        (*ended_in_time, "--remote-debugging-pipe", "about:blank"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(to_browser, from_browser),
    )
    os.close(to_browser)
    os.close(from_browser)
    tools = DevTools(reader, writer)
    try:
        return _look(tools, url, width, scheme)
    finally:
        tools.close()
        browser.wait(LIMIT_SECONDS)


def _look(tools: DevTools, url: str, width: int, scheme: str) -> Page:
    tools.attach(tools.call("Target.createTarget", url="about:blank")["targetId"])
    for domain in ("Page", "Log", "Runtime"):
        tools.call(f"{domain}.enable")
    size = {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": width < 600}
    tools.call("Emulation.setDeviceMetricsOverride", **size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    tools.call("Emulation.setEmulatedMedia", features=features)
    tools.events.clear()
    tools.call("Page.navigate", url=url)
    tools.wait_for("Page.loadEventFired")
    inner, scroll = tools.evaluate("[innerWidth, document.documentElement.scrollWidth]")
    picture = base64.b64decode(tools.call("Page.captureScreenshot", format="png")["data"])
    dom = tools.evaluate("document.documentElement.outerHTML")
    said = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    console = [json.dumps(one) for one in tools.events if one.get("method") in said]
    return Page(dom, console, inner, scroll, picture)
