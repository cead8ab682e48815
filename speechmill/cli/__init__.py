"""The command line `speechmill`. The top of the package: nothing imports it."""
