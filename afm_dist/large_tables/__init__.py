"""Compressing checkpoints whose tables are larger than memory: all passes go over blocks of rows."""
