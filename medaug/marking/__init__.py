"""Marks: what a file says of its own origin, and whether it still is what was written."""
