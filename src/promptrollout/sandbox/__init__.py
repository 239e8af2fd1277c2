"""A local control plane, Prometheus and node for the demo and the tests."""
