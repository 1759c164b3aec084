"""From a folder of scans to a checked manifest with splits."""
