"""Which arm a request gets, and the response ids that carry it. Imports no other room."""
