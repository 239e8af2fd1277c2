"""`python -m promptrollout`: the command line."""

from promptrollout.cli import main

main()
