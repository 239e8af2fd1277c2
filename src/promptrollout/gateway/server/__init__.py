"""The sockets: apps, limits, probes, error formats, the metrics page. May import all other rooms."""
