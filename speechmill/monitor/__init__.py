"""Watching a run: the account of its jobs, run metrics, alerts, and the Panoptes hook."""
