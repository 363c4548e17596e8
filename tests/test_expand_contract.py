"""A schema changes while the service is replaced behind HAProxy, under load: expand, roll out, contract."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from kit.balancers import BALANCERS, FRONT, SLOTS
from kit.guests import Guests
from kit.load import ROWS
from kit.postgres import Postgres
from kit.project import Project, Renders
from kit.service import Service, clean_environment, free_ports, wait_for

pytestmark = pytest.mark.slow

# What the first version has in the place of the example's: one column more, which it reads and writes.
FIRST = {
    "models.py": {
        "from sqlalchemy import BigInteger, Text": (
            "from datetime import datetime\nfrom sqlalchemy import BigInteger, DateTime, Text, func"
        ),
        "visits: Mapped[int] = mapped_column(BigInteger)": (
            "visits: Mapped[int] = mapped_column(BigInteger)\n"
            "    last_seen: Mapped[datetime] = mapped_column(DateTime(timezone=True))"
        ),
    },
    "services.py": {
        "from sqlalchemy import bindparam, select": "from sqlalchemy import bindparam, func, select",
        "visits=1)": "visits=1, last_seen=func.now())",
        "Guest.visits + 1}": 'Guest.visits + 1, "last_seen": func.now()}',
        'Guest.name == bindparam("name"))': 'Guest.name == bindparam("name"), Guest.last_seen <= func.now())',
    },
}
# What the second version has in the place of the first one's.
SECOND = {
    "models.py": {
        "last_seen: Mapped[datetime] = mapped_column(DateTime(timezone=True))": (
            "first_seen: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())"
        ),
    },
    "services.py": {
        ", last_seen=func.now()": "",
        ', "last_seen": func.now()': "",
        "last_seen <= func.now()": "first_seen <= func.now()",
    },
}
MIGRATION = '''"""{title}"""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade() -> None:
{up}


def downgrade() -> None:
{down}
'''
SEEN = {
    "up": '''    now = sa.func.now()
    op.add_column(
        "guests", sa.Column("last_seen", sa.DateTime(timezone=True), server_default=now, nullable=False)
    )
    op.execute("""
        -- squawk-ignore ban-drop-default
        alter table guests alter column last_seen drop default
    """)''',
    "down": """    op.drop_column("guests", "last_seen")""",
}
# The first version goes on writing the old column, the second never names it: the database fills it.
EXPAND = {
    "up": """    now = sa.func.now()
    op.add_column(
        "guests", sa.Column("first_seen", sa.DateTime(timezone=True), server_default=now, nullable=False)
    )
    op.alter_column("guests", "last_seen", server_default=now)""",
    "down": """    op.alter_column("guests", "last_seen", server_default=None)
    op.drop_column("guests", "first_seen")""",
}
BACK = """    op.add_column("guests", sa.Column("last_seen", sa.DateTime(timezone=True)))"""
CONTRACT = {
    "up": '''    op.execute("""
        -- squawk-ignore ban-drop-column
        alter table guests drop column last_seen
    """)''',
    "down": BACK,
}


class Site:
    """Instances of several versions behind HAProxy, with one database."""

    def __init__(self, project: Project, postgres: Postgres, folder: Path) -> None:
        self.project, self.postgres, self.folder = project, postgres, folder
        self.database = postgres.database("guests")
        admin = [f"1{slot}" for slot in SLOTS]
        self.ports = dict(zip((FRONT, *SLOTS, *admin), free_ports(9), strict=True))
        self.processes: list[Service] = []
        self.slots: dict[str, Service] = {}
        (folder / "secrets").mkdir()
        (folder / "secrets" / "db_password").write_text("first")

    def first(self) -> Path:
        return self.changed(self.version("first", self.project.path / "src", seen=SEEN), FIRST)

    def version(self, name: str, base: Path, **migrations: dict[str, str]) -> Path:
        """Make another version of the source from *base*, with more migrations; return its folder."""
        source = Path(shutil.copytree(base, self.folder / name))
        versions = source / self.project.package / "migrations" / "versions"
        for title, steps in migrations.items():
            number = len(list(versions.glob("*.py")))
            names = {"title": title, "revision": f"{number + 1:04}", "before": f"{number:04}"}
            (versions / f"{number + 1:04}_{title}.py").write_text(MIGRATION.format(**names, **steps))
        return source

    def changed(self, source: Path, files: dict[str, dict[str, str]]) -> Path:
        for name, changes in files.items():
            file = source / self.project.package / name
            text = file.read_text()
            for old, new in changes.items():
                assert old in text, f"{name} has no {old!r}"
                text = text.replace(old, new)
            file.write_text(text)
        return source

    def run(self, source: Path, *arguments: str, slot: str = "") -> Service:
        folder = self.folder / f"process{len(self.processes)}"
        folder.mkdir()
        settings = {
            "PYTHONPATH": str(source),
            "APP_HTTP_PORT": str(self.ports.get(slot, 0)),
            "APP_ADMIN_PORT": str(self.ports.get(f"1{slot}", 0)),
            "APP_LOG_FORMAT": "json",
            "APP_SECRETS_DIR": str(self.folder / "secrets"),
            "APP_DRAIN_DELAY": "5",
            "APP_DB_PORT": str(self.postgres.port),
            "APP_DB_NAME": self.database,
        }
        command: tuple[str | Path, ...] = (self.project.python, "-m", self.project.package, *arguments)
        self.processes.append(Service(command, folder, clean_environment(**settings), self.project.path))
        return self.processes[-1]

    def migrate(self, source: Path, waits_for: str = "") -> None:
        """Migrate to what *source* needs, though something long holds the table *waits_for* at first."""
        long = self.postgres.locked(waits_for, self.database, "access share") if waits_for else nullcontext()
        with long:
            process = self.run(source, "migrate")
            if waits_for:
                process.line("migration waits for a lock")
        assert process.wait(120) == 0, process.said()
        assert process.lines("migrated")

    def start(self, source: Path) -> None:
        slot = next(slot for slot in SLOTS if slot not in self.slots)
        self.slots[slot] = self.run(source, slot=slot).ready()
        wait_for(lambda: self.slots[slot].readiness()["status"] == "pass", "readiness")

    def replace(self, source: Path) -> None:
        """Start one of this version, and stop the oldest when the balancer sees the new one."""
        oldest = next(iter(self.slots))
        self.start(source)
        time.sleep(4)
        assert self.slots.pop(oldest).stop() == 0

    def check(self, source: Path, *module: str) -> subprocess.CompletedProcess[str]:
        """Run one of the service's own checks of its migrations."""
        env = clean_environment(PYTHONPATH=str(source))
        command: tuple[str | Path, ...] = (self.project.python, "-m", *module)
        return subprocess.run(command, cwd=self.project.path, env=env, capture_output=True, text=True)


@pytest.fixture
def site(renders: Renders, tmp_path: Path) -> Iterator[Site]:
    postgres = Postgres()
    try:
        site = Site(renders.with_environment(database="postgresql"), postgres, tmp_path)
        yield site
        for process in site.processes:
            process.kill()
    finally:
        postgres.end()


def test_old_and_new_serve_on_the_schema_between_them(site: Site, renders: Renders) -> None:
    first = site.first()
    expand = site.changed(site.version("second", first, expand=EXPAND), SECOND)
    contract = site.version("third", expand, contract=CONTRACT)
    site.migrate(first)
    for _ in range(2):
        site.start(first)
    # As it is deployed: quicker checks would take a busy machine for a broken service.
    haproxy = replace(BALANCERS["haproxy"], quicker={})
    balancer = haproxy.running(renders.get(deploy_to="systemd"), site.folder, site.ports, "/greetings/Ada")
    with balancer:
        # It takes most of a minute: enough requests in each of its seconds, and no machine that is full.
        with Guests(site.ports[FRONT], 4, pause=0.05).running() as load:
            wait_for(lambda: load.answers > 100, "requests on the first schema")
            site.migrate(expand, waits_for="guests")
            reached = load.answers
            wait_for(lambda: load.answers > reached + 100, "requests of the first version on the new schema")
            for _ in range(2):
                site.replace(expand)
            site.migrate(contract)
            reached = load.answers
            wait_for(lambda: load.answers > reached + 100, "requests after the contraction")
        ROWS.append(f"| expand, roll out, contract | {load.answers} | {len(load.failures)} |")
        assert not load.failures, f"{len(load.failures)} failed, first {load.failures[0]}"
        unready = [line for one in site.processes for line in one.lines("readiness check failed")]
        assert not load.refusals, f"{len(load.refusals)} refused: {load.refusals[0]}; unready: {unready}"
        found = site.postgres.sql("select name, visits from guests order by name", site.database)
        assert found == [f"{name}|{visits}" for name, visits in sorted(load.told.items())]
        # The test of this test: what breaks the version that runs is seen.
        with Guests(site.ports[FRONT], 4, "late").running() as late:
            site.postgres.sql("alter table guests drop column visits", site.database)
            wait_for(lambda: late.failures, "requests that fail for want of a column")


SUITE = ("pytest", "-q", "-p", "no:cacheprovider", "tests/chassis/test_migrations.py")
# As the hook runs it, without a database.
LINT = (*SUITE, "-k", "squawk")


def test_the_services_own_checks_see_a_careless_migration(site: Site) -> None:
    expand = site.changed(site.version("second", site.first(), expand=EXPAND), SECOND)
    contract = site.version("third", expand, contract=CONTRACT)
    passed = site.check(contract, *SUITE)
    assert passed.returncode == 0, passed.stdout
    drop = {"up": '    op.drop_column("guests", "visits")', "down": "    pass"}
    refused = site.check(site.version("careless", expand, drop=drop), *LINT)
    assert refused.returncode == 1
    assert "ban-drop-column" in refused.stdout
    assert "0004.sql" in refused.stdout
    # A row of those that the service's own seed has made, which squawk can not know.
    lose = {"up": """    op.execute("delete from guests where name = 'Ada'")""", "down": "    pass"}
    failed = site.check(site.version("lossy", contract, lose=lose), *SUITE)
    assert failed.returncode == 1
    assert "AssertionError: assert ['guests'] == []" in failed.stdout, failed.stdout
