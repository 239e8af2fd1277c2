"""The image that the Dockerfile makes: how large it is, and what is not in it."""

from __future__ import annotations

from tests.node.conftest import Prepared
from tests.node.images import bytes_above_base

_LARGEST_MB = 90


def test_image_is_small(prepared: Prepared) -> None:
    parts = bytes_above_base(prepared.image)
    largest = ", ".join(f"{part} {size / 1e6:.1f}" for part, size in parts.most_common(15))
    assert sum(parts.values()) <= _LARGEST_MB * 1e6, f"{sum(parts.values()) / 1e6:.1f} MB above its base: {largest}"


def test_image_has_no_tools_of_the_sandbox(prepared: Prepared) -> None:
    parts = {part.split(" ")[0] for part in bytes_above_base(prepared.image)}
    assert {"promptrollout", "kopf", "aiohttp"} <= parts
    assert not {"pip", "cryptography", "numpy", "hatchling"} & parts
