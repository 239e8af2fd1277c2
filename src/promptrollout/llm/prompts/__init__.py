"""A version's prompt: templates, their bounds, and how they are filled. Knows answers."""
