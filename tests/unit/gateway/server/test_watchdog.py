"""A pod whose event loop hangs ends with a trace, though whoever hangs keeps the interpreter lock."""

import subprocess
import sys

HANGS = """
import asyncio, ctypes
from promptrollout.gateway.server.watchdog import ended_if_hung

def keeps_the_lock():
    ctypes.PyDLL(None).sleep(600)  # unlike CDLL, PyDLL does not let other threads run

async def main():
    with ended_if_hung(0.5):
        await asyncio.sleep(1.2)  # a loop that runs puts the end off
        print("ran", flush=True)
        keeps_the_lock()

asyncio.run(main())
"""


def test_a_hung_process_ends_with_a_trace() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "ran\n")
    assert "in keeps_the_lock" in done.stderr


ENDS = """
import asyncio, time
from promptrollout.gateway.server.watchdog import ended_if_hung

async def main():
    with ended_if_hung(0.3):
        await asyncio.sleep(0)

asyncio.run(main())
time.sleep(0.8)  # what a process does after its loop has ended is its own
print("ended")
"""


def test_it_ends_with_its_loop() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
