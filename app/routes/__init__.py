"""One file a group of endpoints. A handler reads, calls and answers; what it decides is decided elsewhere."""
