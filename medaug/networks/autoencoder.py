"""The KL-regularised autoencoder of latent diffusion (Rombach et al. 2022), and the codec made from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from medaug.networks.codecs import Codec, Stride, pad_to_multiple


class Autoencoder(nn.Module):
    """MONAI's `AutoencoderKL` on volumes: a residual block per level, no attention.

    Sides are padded to multiples of the stride, because MONAI would silently round them. If the stride is 1 along the
    third axis, the network is 2D and processes each axial slice by itself.

    Args:
        stride: voxels per latent position along each axis.
        image_channels: number M of image channels.
        channels: features per level; each level after the first halves the sides.
        latent_channels: number C of latent channels.
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
            # Use small groups, because normalisation removes the mean and the scale of each group.
            norm_num_groups=max(1, math.gcd(*channels) // 4),
        )

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images (B, M, X, Y, Z), each (B, C, X/sx, Y/sy, Z/sz)."""
        mean, std = self.net.encode(self.slices(pad_to_multiple(image, self.stride)))
        return self._volumes(mean, len(image)), self._volumes(std, len(image))

    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents (B, C, x, y, z) to images (B, M, x*sx, y*sy, z*sz)."""
        return self._volumes(self.net.decode(self.slices(latent)), len(latent))

    def slices(self, x: Tensor) -> Tensor:
        """Volumes (B, C, X, Y, Z) as the network takes them: unchanged in 3D, in 2D as slices (B*Z, C, X, Y)."""
        return rearrange(x, "b c x y z -> (b z) c x y") if self.flat else x

    def _volumes(self, x: Tensor, batch_size: int) -> Tensor:
        """The inverse of `slices`."""
        return rearrange(x, "(b z) c x y -> b c x y z", b=batch_size) if self.flat else x


class LatentCodec(Codec):
    """A trained autoencoder as a codec: the code is the standardised mean of the posterior.

    The weights are buffers, so that checkpoints contain them but diffusion training neither computes gradients for
    them, nor optimises or averages them.
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
