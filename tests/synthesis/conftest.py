"""The fixtures of `generated_pairs`, for the tests of this folder."""

from generated_pairs import card, cohort, made, make, model  # noqa: F401
