"""Settings of the experiments, one file each."""
