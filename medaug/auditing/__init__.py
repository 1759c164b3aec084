"""The audit: measures of synthetic pairs, in a table that can be extended."""
