"""Synthetic pairs: masks, recipes, and the loop that turns recipes into files."""
