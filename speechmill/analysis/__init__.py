"""Compares runs, previews another ranking, explains decisions. Reads finished runs only; knows no server and no command line."""
