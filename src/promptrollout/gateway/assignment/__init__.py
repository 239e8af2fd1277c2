"""Which arm a request gets, and the ids that remember it. Knows no rollout."""
