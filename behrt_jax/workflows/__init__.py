"""The operations on a run, one function each, for the commands and for use from Python."""
