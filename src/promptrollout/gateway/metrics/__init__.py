"""Series and their text, votes, heavy hitters, what is in flight. Knows assignment."""
