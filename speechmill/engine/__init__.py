"""Device batches, memory, checkpoints, devices and their errors. Does not define what is computed."""
