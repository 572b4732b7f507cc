"""Calls for a model of one's own: a plan within a budget of bytes, and everything in one call."""
