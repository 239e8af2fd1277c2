"""Who calls: caller keys and ServiceAccount tokens. May import http."""
