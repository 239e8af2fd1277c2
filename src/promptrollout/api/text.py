"""Many names in a message that has little room."""

from collections.abc import Iterable


def first_few(names: Iterable[str], most: int) -> str:
    """In order, with commas between; of those beyond `most`, how many there are."""
    found = sorted(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
