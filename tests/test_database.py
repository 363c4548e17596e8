"""PostgreSQL: rotated passwords, a server that stops or stands still, a pool that is used up, old schemas."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.guests import Guests
from kit.postgres import Postgres, running_postgres
from kit.project import FRAMEWORKS, Project, Renders
from kit.service import Asking, Service, clean_environment, wait_for

pytestmark = pytest.mark.slow

Start = Callable[..., Service]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def project(request: pytest.FixtureRequest, renders: Renders) -> Project:
    framework = getattr(request, "param", FRAMEWORKS[0])
    return renders.with_environment(web_framework=framework, database="postgresql")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def secrets(tmp_path: Path, postgres: Postgres) -> Path:
    """The folder of the secrets, with the password that is right."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "db_password").write_text("first")
    postgres.password("first")
    return folder


@pytest.fixture
def start(project: Project, postgres: Postgres, secrets: Path, tmp_path: Path) -> Iterator[Start]:
    """What starts the service, or a command of it, with a database of the test's own."""
    database = postgres.database(f"d{time.time_ns()}")
    started: list[Service] = []

    def begin(*arguments: str, **env: str) -> Service:
        folder = tmp_path / f"process{len(started)}"
        folder.mkdir()
        settings = {
            "APP_HTTP_PORT": "0",
            "APP_ADMIN_PORT": "0",
            "APP_SECRETS_DIR": str(secrets),
            "APP_LOG_FORMAT": "json",
            "APP_DB_PORT": str(postgres.port),
            "APP_DB_NAME": database,
        }
        command: tuple[str | Path, ...] = (project.python, "-m", project.package, *arguments)
        service = Service(command, folder, clean_environment(**settings | env), project.path)
        started.append(service)
        return service

    yield begin
    for service in started:
        service.end()


@pytest.fixture
def migrated(start: Start) -> Start:
    """The same, with the newest schema."""
    migrate = start("migrate")
    # The first of all compiles what it imports.
    assert migrate.wait(120) == 0, migrate.said()
    return start


def database_of(service: Service) -> dict[str, str]:
    check: dict[str, str] = service.readiness()["checks"]["Database"][0]
    return check


def test_a_password_is_rotated_under_load(migrated: Start, postgres: Postgres, secrets: Path) -> None:
    # What a busy machine delays is no refusal.
    patient = {"APP_DB_CONNECT_TIMEOUT": "30", "APP_DB_POOL_TIMEOUT": "30"}
    # It looks for new secrets only when one is refused.
    service = migrated(APP_SECRETS_REFRESH="0", **patient).ready()
    with Guests(service.port(), 2, "steady").running() as steady:
        wait_for(lambda: steady.answers > 20, "requests")
        postgres.password("second")
        # More clients need new connections, which the old password does not give any more.
        with Guests(service.port(), 12, "new").running() as new:
            # Long enough for logins to be refused before the file follows.
            time.sleep(1)
            (secrets / "db_password").write_text("second")
            wait_for(lambda: new.answers > 100, "requests of the new clients")
    for load in (steady, new):
        assert not load.failures, load.failures[0]
        assert not load.refusals, load.refusals[0]
    assert service.lines("secrets reloaded")
    assert {"first", "second"}.isdisjoint(service.said().split('"'))
    assert service.stop() == 0


@pytest.mark.parametrize("project", FRAMEWORKS, indirect=True)
def test_a_wrong_password_is_an_error_in_time(start: Start, secrets: Path) -> None:
    (secrets / "db_password").write_text("wrong-password")
    service = start(APP_DB_CONNECT_TIMEOUT="1").ready()
    answer = service.ask("/greetings", method="POST", headers=JSON, body='{"name": "Ada"}')
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "password authentication failed" in service.line("database unavailable")["error"]
    assert database_of(service)["status"] == "fail"
    assert "wrong-password" not in service.said()


def survives(service: Service, load: Guests, before: int) -> None:
    """Afterwards, all is as it was, without a restart."""
    wait_for(lambda: service.readiness()["status"] == "pass", "readiness after PostgreSQL came back")
    refused = len(load.refusals)
    reached = load.answers
    wait_for(lambda: load.answers > reached + before, "answers after PostgreSQL came back")
    assert len(load.refusals) - refused < before


def test_it_outlives_a_stop_of_postgresql(migrated: Start, postgres: Postgres) -> None:
    service = migrated().ready()
    with Guests(service.port(), 20).running() as load:
        wait_for(lambda: load.answers > 100, "requests")
        postgres.stop()
        wait_for(lambda: service.readiness()["status"] == "fail", "readiness to follow")
        assert service.status("/-/healthy", "admin") == 200
        # An outage that lasts: all limits of the pool and of statements have passed in it.
        time.sleep(8)
        assert service.status("/-/healthy", "admin") == 200
        postgres.start()
        survives(service, load, 100)
    assert not load.failures, load.failures[0]
    assert load.refusals
    assert all(answer.headers["retry-after"] == "1" for answer in load.refusals)
    assert service.stop() == 0


def test_nobody_waits_for_long_while_postgresql_stands_still(migrated: Start, postgres: Postgres) -> None:
    limits = {"APP_DB_TRANSACTION_TIMEOUT": "1", "APP_DB_POOL_TIMEOUT": "0.3", "APP_DB_POOL_SIZE": "4"}
    service = migrated(APP_DB_STATEMENT_TIMEOUT="1", APP_DB_CONNECT_TIMEOUT="1", **limits).ready()
    with Guests(service.port(), 20).running() as load:
        wait_for(lambda: load.answers > 100, "requests")
        with postgres.frozen():
            wait_for(lambda: service.readiness()["status"] == "fail", "readiness to follow")
            before = len(load.refusals)
            # All limits have passed in it, several times.
            time.sleep(4)
            assert service.status("/-/healthy", "admin") == 200
            # Those without a connection are answered all the time.
            assert len(load.refusals) > before + 50
        survives(service, load, 100)
    assert not load.failures, load.failures[0]
    assert all(answer.headers["retry-after"] == "1" for answer in load.refusals)
    assert service.stop() == 0


def test_a_pool_that_is_used_up_is_said_and_measured(migrated: Start, postgres: Postgres) -> None:
    patient = {"APP_DB_STATEMENT_TIMEOUT": "60", "APP_DB_TRANSACTION_TIMEOUT": "60"}
    service = migrated(APP_DB_POOL_SIZE="2", APP_DB_POOL_TIMEOUT="0.3", **patient).ready()
    database = postgres.sql("select datname from pg_database where datname like 'd%' order by 1 desc")[0]
    with Guests(service.port(), 8).running() as load, postgres.locked("guests", database, "exclusive"):
        wait_for(lambda: len(load.refusals) > 20, "requests that get no connection")
        assert service.readiness()["status"] == "pass"
        series = service.series()
        assert series['db_client_connection_count{db_client_connection_state="used"}'] == 2
        assert series["db_client_connection_max"] == 2
        assert series["db_client_connection_timeouts_total"] >= 20
        assert series["db_client_connection_pending_requests"] > 0
    assert {answer.json()["detail"] for answer in load.refusals} == {
        "All connections to the database are in use."
    }
    assert not load.failures, load.failures[0]
    assert service.stop() == 0


def test_a_request_waits_longer_for_a_lock_than_a_migration(migrated: Start, postgres: Postgres) -> None:
    service = migrated(APP_DB_STATEMENT_TIMEOUT="60").ready()
    database = postgres.sql("select datname from pg_database where datname like 'd%' order by 1 desc")[0]
    waiting = "from pg_stat_activity where wait_event_type = 'Lock' and now() - query_start > '3 s'"
    with postgres.locked("guests", database, "exclusive"):
        request = Asking(service, "/greetings", method="POST", headers=JSON, body='{"name": "Ada"}')
        wait_for(
            lambda: postgres.sql(f"select count(*) {waiting}") == ["1"], "a request that waits for a lock"
        )
    request.join()
    assert request.answer is not None
    assert request.answer.status == 200
    assert service.stop() == 0


def test_an_old_schema_makes_it_unready_until_it_is_migrated(start: Start, tmp_path: Path) -> None:
    service = start().ready()
    assert database_of(service)["status"] == "fail"
    assert "run the command migrate" in service.line("readiness check failed")["error"]
    assert service.status("/-/ready") == 503
    assert start("migrate", "--check").wait(120) == 1
    written = tmp_path / "pending.sql"
    assert start("migrate", "--sql", str(written)).wait(120) == 0
    assert "CREATE TABLE guests" in written.read_text()
    # Neither of them has changed anything.
    assert service.status("/-/ready") == 503
    migrate = start("migrate")
    assert migrate.wait(120) == 0
    assert migrate.line("migrated")["applied"] == ["0001"]
    assert start("migrate", "--check").wait(120) == 0
    wait_for(lambda: service.status("/-/ready") == 200, "readiness with the new schema")
    # A check leaves no line as long as its outcome is the same.
    assert not [line for line in service.lines() if line["logger"].startswith(("alembic", "sqlalchemy"))]


def test_of_ten_that_migrate_at_once_one_does(start: Start) -> None:
    replicas = [start("migrate") for _ in range(10)]
    assert [replica.wait(120) for replica in replicas] == [0] * 10
    assert len([replica for replica in replicas if replica.lines("migrated")]) == 1


def test_what_postgresql_can_not_store_is_a_422(migrated: Start) -> None:
    service = migrated().ready()
    for name in ("a\\u0000b", "x\\ud800"):
        answer = service.ask("/greetings", method="POST", headers=JSON, body=f'{{"name": "{name}"}}')
        assert answer.status in (400, 422), answer.text


def test_a_connection_that_was_cut_while_it_was_idle_costs_no_request(
    migrated: Start, postgres: Postgres
) -> None:
    service = migrated().ready()

    def greet() -> int:
        return service.ask("/greetings", method="POST", headers=JSON, body='{"name": "Ada"}').status

    def cut() -> None:
        logins = "from pg_stat_activity where usename = 'app'"
        postgres.sql(f"select pg_terminate_backend(pid) {logins}")
        wait_for(lambda: postgres.sql(f"select count(*) {logins}") == ["0"], "the end of all connections")

    for _ in range(3):
        assert greet() == 200
        cut()
    assert greet() == 200
    # Readiness has a connection of its own.
    assert database_of(service)["status"] == "pass"
    assert not service.lines("database unavailable")
    assert service.stop() == 0
