"""A trained model applied to real scans: what it may be asked, what it is told, what comes out."""
