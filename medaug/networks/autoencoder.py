"""The KL-regularised autoencoder of latent diffusion (Rombach et al. 2022), and the codec that it becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from medaug.networks.codecs import Codec, Stride, pad_to_multiple


class Autoencoder(nn.Module):
    """MONAI's `AutoencoderKL` on volumes: a residual block per level, no attention.

    Sides are padded to multiples of the stride, which MONAI would round silently. A stride that leaves the third axis
    as it is stands for a 2D network: every axial slice is a sample of its own.

    Args:
        stride: voxels per latent position.
        image_channels: M of the images.
        channels: features per level; each level after the first halves the sides.
        latent_channels: C of the latents.
    """

    def __init__(self, stride: Stride, image_channels: int, channels: Sequence[int], latent_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.flat = stride[2] == 1
        self.net = AutoencoderKL(
            spatial_dims=2 if self.flat else 3,
            in_channels=image_channels,
            out_channels=image_channels,
            channels=tuple(channels),
            latent_channels=latent_channels,
            num_res_blocks=1,
            attention_levels=(False,) * len(channels),
            with_encoder_nonlocal_attn=False,  # quadratic in the number of voxels
            with_decoder_nonlocal_attn=False,
            norm_num_groups=max(
                1, math.gcd(*channels) // 4
            ),  # of few features each: what a group has in common is lost
        )

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, M, X, Y, Z) to mean and standard deviation of their latents, each (B, C, X/sx, Y/sy, Z/sz)."""
        mean, std = self.net.encode(self.slices(pad_to_multiple(image, self.stride)))
        return self._unfolded(mean, len(image)), self._unfolded(std, len(image))

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (B, C, x, y, z) to images (B, M, x*sx, y*sy, z*sz)."""
        return self._unfolded(self.net.decode(self.slices(latent)), len(latent))

    def slices(self, x: Tensor) -> Tensor:
        """Volumes as the network inside takes them: as they are, or (2D) every axial slice a sample, (B*Z, C, X, Y)."""
        return x.permute(0, 4, 1, 2, 3).flatten(0, 1) if self.flat else x

    def _unfolded(self, x: Tensor, batch_size: int) -> Tensor:
        return x.unflatten(0, (batch_size, -1)).permute(0, 2, 3, 4, 1) if self.flat else x


class LatentCodec(Codec):
    """A trained autoencoder as a codec: the code is the standardised mean of the posterior.

    The weights are buffers: no optimiser, moving average or gradient of the diffusion stage meets them, and
    checkpoints carry them.
    """

    def __init__(self, stride: Stride, image_channels: int, channels: Sequence[int], latent_channels: int) -> None:
        super().__init__(stride, latent_channels)
        self.autoencoder = Autoencoder(stride, image_channels, channels, latent_channels)
        for module in self.autoencoder.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())

    def transform(self, image: Tensor) -> Tensor:
        """The posterior's mean, without noise."""
        return self.autoencoder.posterior(image)[0]

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The decoder."""
        return self.autoencoder.decode(coefficients)


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) in nats, averaged over all latent values (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
