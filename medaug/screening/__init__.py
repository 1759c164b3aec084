"""Screening of synthetic pairs: a table of rules, each fitted once on real scans, then applied to every pair."""
