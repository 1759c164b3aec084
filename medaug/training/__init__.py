"""The diffusion model, its Lightning module, callbacks and checkpoints."""
