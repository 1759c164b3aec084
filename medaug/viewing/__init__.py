"""Pages to look at pairs in a browser, the reviews that they save, and blinded reading sets."""
