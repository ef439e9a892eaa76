"""A self-contained HTML report about a run."""
