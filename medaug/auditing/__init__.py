"""The audit: measures of synthetic pairs, in a table to which others can be added."""
