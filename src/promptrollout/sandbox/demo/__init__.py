"""The demo: the quickstart with a good and a bad change, shown live. Knows all other rooms."""
