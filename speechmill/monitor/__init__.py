"""The record of a run, status, alerts, Prometheus and Panoptes. Reads a run's files and the cluster's queue; changes neither."""
