"""The benchmark's arms, its jobs, and the guard against leaks."""
