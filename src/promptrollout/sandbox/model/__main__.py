"""`python -m promptrollout.sandbox.model`: serve until stopped."""

from promptrollout.sandbox.model.server import main

main()
