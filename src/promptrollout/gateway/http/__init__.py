"""One HTTP exchange: bounded bodies, replies, errors. Imports no other room."""
