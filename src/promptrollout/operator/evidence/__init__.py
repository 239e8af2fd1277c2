"""From the metrics of a source to evidence for the engine: what to ask, batches, reading. Knows sources."""
