"""Turns a folder of scans into a checked manifest with splits."""
