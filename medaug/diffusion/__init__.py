"""The mathematics of diffusion: it needs only torch, and no files, networks or training loop.

schedules.py    alpha(t) and sigma(t), training times, and how x and t are scaled for the network
predictions.py  what a network predicts, how x_0 follows from it, and loss weights
process.py      the forward process x_t = alpha(t) x_0 + sigma(t) epsilon: a schedule, a prediction type, a loss weight
spacings.py     how the time steps of a sampler are distributed
samplers.py     from noise to a sample, each a short generator over `denoise(x_t, t) -> x_0`
guidance.py     classifier-free guidance: one denoiser made from two conditions
inpainting.py   generates a region of a given image
windows.py      a denoiser of whole volumes from one of patches
noise.py        named seeds and one generator per sample

Prediction types, guidance and samplers are connected only through `denoise`, so they can be combined freely. Schedules,
predictions, loss weights, spacings and samplers are tables (`medaug.tables`).
"""
