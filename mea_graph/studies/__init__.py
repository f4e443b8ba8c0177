"""`mea-graph study`: the paper's tables and figures, one command each, on any data that the package reads."""
