"""How well an exported model does on rows with labels, and whether that is good enough to serve."""
