"""Denoising networks behind one signature net(x, t, condition), and the codecs that they run in."""
