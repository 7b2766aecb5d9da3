"""Sources that need not fit a disk: random access to images by blocks that are fetched when one of their rows is."""
