"""What came of a run: a page for people, numbers for programs, and one table of all clips (docs/architecture.md)."""
