"""Rules for canaries, side by side on the very same traffic: when they roll back, and how wrongly."""
