"""Cohorts and synthetic pairs written for other tools: one file per format, and the table of formats."""
