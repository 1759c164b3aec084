"""Screening of synthetic pairs: a table of rules, which are fitted once on real scans and applied to every pair."""
