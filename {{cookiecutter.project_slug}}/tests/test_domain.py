from datetime import UTC, datetime

import pytest

from {{ cookiecutter.package_name }}.domain import greet


@pytest.mark.parametrize(("hour", "part"), [(0, "morning"), (12, "afternoon"), (17, "afternoon"), (18, "evening")])
def test_greets_by_the_time_of_day(hour: int, part: str) -> None:
    assert greet(" Ada ", datetime(2026, 5, 1, hour, tzinfo=UTC), evening=18) == f"Good {part}, Ada."


def test_a_greeting_needs_a_name() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        greet(" ", datetime(2026, 5, 1, tzinfo=UTC), evening=18)
