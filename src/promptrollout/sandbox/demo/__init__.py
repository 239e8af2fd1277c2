"""The demo: the quickstart with a good and a bad change, told as it happens. Knows all other rooms."""
