"""The node: runs pods of the control plane as local processes, with probes, volumes and tokens of their own."""
