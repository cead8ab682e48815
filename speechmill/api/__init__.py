"""The REST API: starts, watches and stops runs. The command line and the API share everything below; they do not know each other."""
