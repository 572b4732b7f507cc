"""Checkpoint directories: a model, its config, its digests, and what prepares a raw row for it."""
