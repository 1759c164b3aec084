"""Computes heads with tumours from equations and an average brain, for demos and tests."""
