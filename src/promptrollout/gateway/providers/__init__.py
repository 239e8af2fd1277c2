"""The language models behind the gateway, one module per kind of API."""
