"""The API server as the operator sees it: reads, writes, watches, the queue, Events, metrics. Knows no other room."""
