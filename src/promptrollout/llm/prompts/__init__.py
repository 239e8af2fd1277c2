"""A version's prompt: templates, their limits, and how they are rendered. May import answers."""
