"""The stages of the jobs: each reads what earlier ones left, does one thing, leaves its result."""
