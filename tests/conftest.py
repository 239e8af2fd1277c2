"""What holds for all tests."""

import asyncio


def pytest_configure() -> None:
    # looptime asks for the current event loop in tests without one as well; asyncio would then make a loop that nobody
    # closes, which is a warning, and warnings are errors
    asyncio.set_event_loop(None)
