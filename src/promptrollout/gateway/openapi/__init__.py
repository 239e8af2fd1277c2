"""The OpenAPI document of everything that callers may ask. Knows applications."""
