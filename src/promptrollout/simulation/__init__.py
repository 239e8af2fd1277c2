"""Rollouts on a virtual clock: traffic that could have been, and what the engine would have decided on it.

What draws traffic or pictures needs the extra `simulate` (numpy, matplotlib); replaying what was recorded does not.
"""
