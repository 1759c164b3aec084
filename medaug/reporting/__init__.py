"""The benchmark's report and what the console prints, made from result types only."""
