"""The mathematics of diffusion, alone: torch only; no files, no networks, no training loop.

schedules.py    alpha(t) and sigma(t), training times, and how x and t enter a network
predictions.py  what a network predicts, the way back to x_0, weights of the loss
process.py      the forward process x_t = alpha(t) x_0 + sigma(t) epsilon, composed of one of each
spacings.py     where the steps of a sampler lie
samplers.py     from noise to a sample, each a short generator over `denoise(x_t, t) -> x_0`
guidance.py     classifier-free guidance, one denoiser made of two conditions
inpainting.py   redrawing a region of a given image
noise.py        named seeds and one generator per sample

Objectives, guidance and samplers meet only in `denoise`, so any of one goes with any of the others. Schedules,
predictions, loss weights, spacings and samplers are tables (`medaug.tables`).
"""
