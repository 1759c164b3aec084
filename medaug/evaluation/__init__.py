"""Scores of segmentations and images, faithfulness, fidelity, memorisation, and bootstrap intervals."""
