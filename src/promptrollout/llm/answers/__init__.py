"""What a model answered: choices, streams, usage, output schemas. Knows errors only."""
