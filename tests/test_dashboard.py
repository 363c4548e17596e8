"""The dashboard, read by Grafana's own SDK: what it does not know would be lost when Grafana opens it."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard, units
from kit.project import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "operations/dashboard.json").read_text(encoding="utf-8"))
UNITS = {value for name, value in vars(units).items() if not name.startswith("_")}

register_default_plugins()


def lost(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of what is not, or is otherwise, in what was kept."""
    match given, kept:
        case dict(), dict():
            for name, value in given.items():
                yield from lost(value, kept.get(name), f"{path}/{name}")
        case list(), list() if len(given) == len(kept):
            for number, pair in enumerate(zip(given, kept, strict=True)):
                yield from lost(*pair, f"{path}/{number}")
        case _ if given != kept:
            yield path


def problems(given: dict[str, Any]) -> list[str]:
    """Return the paths of what Grafana would not understand."""
    read = dashboard.Dashboard.from_json(given)
    found = [*lost(given, json.loads(JSONEncoder().encode(read)))]
    for number, panel in enumerate(read.panels or ()):
        if isinstance(panel, dashboard.Panel):
            # The options of a kind of panel that it does not know stay as they are.
            found += [f"/panels/{number}/type"] * isinstance(panel.options, dict)
            unit = panel.field_config and panel.field_config.defaults.unit
            found += [f"/panels/{number}/fieldConfig/defaults/unit"] * (unit not in UNITS)
    return found


def test_grafanas_sdk_knows_all_that_the_dashboard_says() -> None:
    assert problems(DASHBOARD) == []


@pytest.mark.parametrize(
    "path",
    [
        "/refersh",
        "/panels/1/gridPso",
        "/panels/1/type",
        "/panels/1/fieldConfig/defaults/unit",
        "/panels/1/targets/0/expression",
        "/panels/1/options/tip",
        "/templating/list/1/includeEverything",
    ],
)
def test_what_it_does_not_know_is_seen(path: str) -> None:
    given = copy.deepcopy(DASHBOARD)
    *way, last = path.strip("/").split("/")
    at: Any = given
    for step in way:
        at = at[int(step) if step.isdigit() else step]
    at[last] = "odd"
    assert problems(given) == [path]
