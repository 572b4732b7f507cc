"""How gradients travel between the workers of a training: one object, exact sums by default."""
