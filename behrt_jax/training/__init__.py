"""Training: state, optimizer, loop, checkpoints and workdirs."""
