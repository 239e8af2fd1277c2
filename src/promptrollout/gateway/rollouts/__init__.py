"""The configuration in service: watch, load, swap, keep the last good copy. May import metrics, assignment and auth."""
