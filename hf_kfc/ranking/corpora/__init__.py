"""The corpora as `datasets` builders, and what they have in common."""
