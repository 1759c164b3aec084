"""Writes cohorts and synthetic pairs for other tools: one module per format, and the table of formats."""
