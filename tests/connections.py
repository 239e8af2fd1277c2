"""One HTTP client for all tests of a process.

`httpx.get` and its like make a client each time, which reads all certificates of the machine: 40 ms of CPU.
"""

import httpx

HTTP = httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""A connection for each call: one that is kept would stay with a pod that was replaced."""
