"""Series and their text format, votes, heavy hitters, work in flight. May import assignment."""
