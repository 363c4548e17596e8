"""What this service is about, in plain Python."""


def price_tag(cents: int, currency: str) -> str:
    """Say a price as people read it."""
    return f"{cents // 100}.{cents % 100:02} {currency}"
