"""What the two kinds of representation are trained for: losses and discriminators."""
