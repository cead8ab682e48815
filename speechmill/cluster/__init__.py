"""The executors: this machine, Slurm, Kubernetes. Knows what jobs request and how to ask a cluster about them; nothing of clips."""
