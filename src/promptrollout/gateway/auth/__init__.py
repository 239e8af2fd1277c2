"""Who calls: keys and ServiceAccount tokens. Knows http."""
