"""Commands: thin scripts, run as `python -m experiments.NAME`."""
