"""Raw rows to scores: read and encoded as the training data was, scored on Ray, in the order of the input."""
