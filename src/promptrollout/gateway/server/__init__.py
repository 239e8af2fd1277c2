"""The sockets: apps, limits, probes, error formats, the metrics page. Knows all other rooms."""
