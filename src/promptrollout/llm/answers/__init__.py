"""What a model answered: choices, streams, usage, output schemas. Imports no other room."""
