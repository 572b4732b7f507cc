"""Raw rows to scores: read and encoded as the training data was, scored on Ray, in the order of the input."""

BATCH_SIZE = 8192
MAX_BAD_ROWS = 0.001
