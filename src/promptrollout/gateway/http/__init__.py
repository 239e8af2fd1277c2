"""One HTTP exchange: bodies within bounds, replies, errors. Knows no other room."""
