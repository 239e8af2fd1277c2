"""One request from its assignment to its count: serve is the short version. Knows rollouts."""
