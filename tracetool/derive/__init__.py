"""One rank: what its own tables can tell, before any other rank is looked at."""
