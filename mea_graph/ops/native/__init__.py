"""C++ for the CPU, which a compiler on the user's machine builds at first use; kept in the user's cache folder."""
