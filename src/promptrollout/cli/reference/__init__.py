"""Writes the pages of docs/reference that come from code: `python -m promptrollout.cli.reference`.

One module a page. They may import everything, because they describe all of it.
"""
