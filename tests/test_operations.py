"""What operators are given: rules, dashboard and runbook fit together, and promtool tests each alert."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit.project import ROOT, Renders
from kit.tools import tool

OPERATIONS = ROOT / "operations"
RUNBOOK = (OPERATIONS / "runbook.md").read_text(encoding="utf-8")
URL = "https://github.com/org/deployable-service/blob/main/operations/runbook.md"
PARTS = ("For users", "Look first", "Likely", "Do", "Don't")


def rules() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((OPERATIONS / "rules.yaml").read_text(encoding="utf-8"))
    return read


def alerts(of: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    groups = (of or rules())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def sections() -> dict[str, str]:
    """Return the sections of the runbook, by their titles."""
    _, *rest = re.split(r"^## (.+)$", RUNBOOK, flags=re.MULTILINE)
    return dict(zip(rest[::2], rest[1::2], strict=True))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run((tool("promtool"), *arguments), capture_output=True, text=True, timeout=300)


def test_prometheus_takes_the_rules() -> None:
    done = promtool("check", "rules", OPERATIONS / "rules.yaml")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def series_of_alerts() -> dict[str, dict[str, Any]]:
    text = (OPERATIONS / "rules_test.yaml").read_text(encoding="utf-8")
    return {test["name"]: test for test in yaml.safe_load(text)["tests"]}


def test_each_alert_has_series_that_fire_and_series_that_do_not() -> None:
    tests = series_of_alerts()
    assert [*tests] == [*alerts()]
    for name, test in tests.items():
        jobs = {job for one in test["input_series"] for job in re.findall(r'job="([\w-]+)"', one["series"])}
        bad = {job for job in jobs if job.startswith("bad")}
        assert bad, name
        assert {job for job in jobs - bad if job.startswith("good")}, name
        first = test["promql_expr_test"][0]
        assert f'ALERTS{{alertname="{name}"' in first["expr"], name
        fired = {re.findall(r'job="([\w-]+)"', sample["labels"])[0] for sample in first["exp_samples"]}
        assert fired == bad, name


@pytest.mark.slow
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    done = promtool("test", "rules", OPERATIONS / "rules_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken", ["vector(0) > 1", 'group by (job) ({__name__!~"ALERTS.*", job=~".+"})'], ids=["never", "always"]
)
def test_an_alert_that_is_broken_is_seen(tmp_path: Path, broken: str) -> None:
    """The tests of the rules can fail, each: an alert that never fires, and one that fires for all."""
    changed, tests = rules(), yaml.safe_load((OPERATIONS / "rules_test.yaml").read_text(encoding="utf-8"))
    changed["groups"] = [{"name": "broken", "rules": [*alerts(changed).values()]}]
    for rule in alerts(changed).values():
        rule["expr"] = broken
        rule.pop("for", None)
    # Those of the objectives take long, and are no other kind of test.
    tests["tests"] = [test for test in tests["tests"] if "Budget" not in test["name"]]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    (tmp_path / "rules_test.yaml").write_text(yaml.safe_dump(tests), encoding="utf-8")
    done = promtool("test", "rules", tmp_path / "rules_test.yaml")
    assert done.returncode != 0
    seen = set(re.findall(r'alertname=\\?"(\w+)', done.stderr + done.stdout))
    assert seen == {test["name"] for test in tests["tests"]}


def test_each_alert_says_what_it_is_and_where_to_look() -> None:
    for name, rule in alerts().items():
        assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"}), name
        assert rule["annotations"].keys() == {"summary", "runbook_url"}, name
        assert "$labels.job" in rule["annotations"]["summary"], name
        assert rule["annotations"]["runbook_url"] == f"{URL}#{name.lower()}"


def test_the_runbook_has_one_section_for_each_alert() -> None:
    found = alerts()
    assert [*sections()] == [*found]
    for name, text in sections().items():
        assert text.split()[0] == f"{found[name]['labels']['severity']}.", name
        places = [text.find(f"\n**{part}") for part in PARTS]
        assert -1 not in places, f"{name}: {dict(zip(PARTS, places, strict=True))}"
        assert places == sorted(places), name
        assert "```sh\n" in text, name


def test_the_objectives_are_the_same_everywhere() -> None:
    head = (OPERATIONS / "rules.yaml").read_text(encoding="utf-8").partition("groups:")[0]
    assert "(in the alerts: 0.001 of them may fail)" in head
    assert "(in the alerts: 0.01 of them may be slow;" in head
    for name, share in (("ErrorBudget", "0.001"), ("LatencyBudget", "0.01")):
        for suffix in ("BurnsFast", "Burns"):
            expression = alerts()[name + suffix]["expr"]
            limits = re.findall(r"ratio_rate\w+ > (?:[\d.]+ \* )?([\d.]+)", expression)
            assert limits == [share] * 4, name + suffix


def test_the_dashboard_is_what_its_description_says(tmp_path: Path) -> None:
    shutil.copy(OPERATIONS / "dashboard.py", tmp_path)
    subprocess.run((sys.executable, tmp_path / "dashboard.py"), check=True, timeout=60)
    made, kept = ((folder / "dashboard.json").read_text("utf-8") for folder in (tmp_path, OPERATIONS))
    assert made == kept, "run: python operations/dashboard.py"
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(made)["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead(page: Path) -> list[str]:
    """Return the links of a page to files and anchors that are not there."""
    found = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            found.append(link)
    return found


def test_no_link_of_the_pages_is_dead() -> None:
    for page in (OPERATIONS / "runbook.md", ROOT / "docs/operations.md", ROOT / "README.md"):
        assert dead(page) == [], page


def test_a_service_points_at_pages_that_there_are(renders: Renders) -> None:
    readme = (renders.get().path / "README.md").read_text(encoding="utf-8")
    root = "https://github.com/org/deployable-service/blob/main/"
    links = [link.removeprefix(root) for link in LINK.findall(readme) if link.startswith(root)]
    assert {"docs/operations.md", "docs/../operations/runbook.md"} <= set(links)
    assert not [link for link in links if not (ROOT / link).exists()]


def test_a_service_knows_the_release_of_its_template(renders: Renders) -> None:
    """The newest release in the changelog, and its day; docs/updates.md says to set both."""
    project = renders.get()
    metrics = (project.path / "src" / project.package / "chassis/metrics.py").read_text(encoding="utf-8")
    constant = r'^TEMPLATE_VERSION, TEMPLATE_RELEASED = "(.+)", datetime\((\d+), (\d+), (\d+), tzinfo=UTC\)$'
    [(version, *day)] = re.findall(constant, metrics, flags=re.MULTILINE)
    known = version, "-".join(number.zfill(2) for number in day)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (\d+\.\d+\.\d+)(?: - (\d{4}-\d\d-\d\d))?", changelog, flags=re.MULTILINE)
    assert known == released[0] if released else known[0] == "unreleased"
