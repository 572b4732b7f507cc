"""Run directories: stages, what they left, and their events."""
