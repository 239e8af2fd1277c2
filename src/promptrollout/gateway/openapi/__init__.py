"""The OpenAPI document of the serving port. May import applications."""
