"""One request from assignment to accounting; `serve` is the walk. May import rollouts."""
