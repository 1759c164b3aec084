"""The generator as a MONAI bundle: what writes it, and what runs in it."""
