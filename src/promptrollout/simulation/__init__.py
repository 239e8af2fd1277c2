"""Traffic that could have been, and what the engine would have decided on it. Needs numpy (extra `simulate`)."""
