"""A rollout from its first version to the last step: what happens next, and why. Knows objectives and statistics."""
