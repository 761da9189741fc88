"""memexp: trains networks deeper than the memory of a GPU, and records accuracy beside peak memory and step time."""
