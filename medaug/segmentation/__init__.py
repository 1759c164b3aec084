"""Segmenters: the benchmark trains one per arm and seed; the audit and the scoring of samples train their own."""
