"""The downstream segmenter: what the synthetic pairs are for, and, trained apart, the audit's judge."""
