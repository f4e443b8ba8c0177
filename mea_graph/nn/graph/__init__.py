"""The graph of representations, and the layers that pass its messages."""
