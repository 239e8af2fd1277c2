"""What holds for all tests."""

import asyncio

from hypothesis import settings

# a machine that is busy with something else is no reason to fail
settings.register_profile("promptrollout", deadline=None, print_blob=True)
settings.load_profile("promptrollout")


def pytest_configure() -> None:
    # looptime asks for the current event loop in tests without one as well; asyncio would then make a loop that nobody
    # closes, which is a warning, and warnings are errors
    asyncio.set_event_loop(None)
