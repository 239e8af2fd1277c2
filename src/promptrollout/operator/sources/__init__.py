"""Metrics sources: queries, access and lanes of Prometheus-compatible stores. Knows cluster."""
