"""Who proposes what becomes of a model: sizes that are given, a budget of bytes, a grid."""
