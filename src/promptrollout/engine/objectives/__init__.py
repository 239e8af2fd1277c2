"""What an objective measures and how it is tested: signals, rates, means, sample ratio. Knows statistics."""
