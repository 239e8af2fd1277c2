"""The configuration in service: watch, load, swap, keep. Knows metrics, assignment and auth."""
