"""Estimates hours, GPU hours and disk of a run. Reads earlier runs and source listings; does not start anything."""
