"""The mathematics of diffusion, alone: torch only; no files, no networks, no training loop.

schedules.py  alpha(t) and sigma(t), the times to train at, and how a network is shown x and t
process.py    x_t = alpha(t) x_0 + sigma(t) epsilon, what a network predicts, the way back to x_0, weights of the loss
samplers.py   from noise to a sample, each a short generator over `denoise(x_t, t) -> x_0`; where its steps lie
guidance.py   classifier-free guidance, a denoiser made of two
noise.py      named seeds and one generator per sample

Objectives, guidance and samplers meet only in `denoise`, so any of one goes with any of the others.
"""
