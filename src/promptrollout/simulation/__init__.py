"""Rollouts on a virtual clock: the operator's own `plan` against synthetic, recorded or historical metrics."""
