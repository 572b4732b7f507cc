"""What the stages of a job have in common: a context, steps that estimate and run, and lists of them."""
