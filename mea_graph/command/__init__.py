"""What the command `mea-graph` answers at once: help and mistyped words. Nothing here imports torch or Lightning."""
