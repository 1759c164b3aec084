"""Heads with tumours, made from equations and an average brain, for demos and tests."""
