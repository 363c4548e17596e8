"""What this service is about, in plain Python: no framework, no clock, no network, so nothing to fake in tests."""

from datetime import datetime


def greet(name: str, at: datetime, evening: int) -> str:
    """Greet *name* as fits the time of day; from the hour *evening* on it is evening.

    Raises:
        ValueError: There is no name.
    """
    if not name.strip():
        raise ValueError("a greeting needs a name")
    part = "morning" if at.hour < 12 else "afternoon" if at.hour < evening else "evening"
    return f"Good {part}, {name.strip()}."
