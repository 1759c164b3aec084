"""Denoising networks with one signature, net(x, t, condition), and the codecs whose space they work in."""
