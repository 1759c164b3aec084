"""Numbers that judge: segmentation scores, intervals and verdicts, texture."""
