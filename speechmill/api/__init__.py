"""The REST API: starts runs, follows and ends them. Each run has a process of its own, which needs no server."""
