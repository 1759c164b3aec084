"""Options of the model: task, codec, network and process."""

from __future__ import annotations

from dataclasses import dataclass

from medaug.options.declaration import (
    Items,
    above,
    added_parameters,
    at_least,
    between,
    not_with,
    one_of,
    only_with,
    option,
    path_option,
)

_KL = (only_with("codec.name", "kl"),)
_KL_MADE = (*_KL, not_with("train.init_from"))
_KL_TRAINED = (*_KL_MADE, not_with("codec.checkpoint"))
_EDM = (only_with("process.noise_schedule", "edm"),)
_VARIANCE_PRESERVING = (only_with("process.noise_schedule", "linear", "cosine"),)


@dataclass
class TaskOptions:
    """What the model generates, and from which conditions."""

    target: str = option("what is generated: the image, or the label map", "image", choices=one_of("image", "label"))
    modalities: list[str] = option(
        "modalities that are generated; empty: all",
        [],
        items=Items(distinct=True),
        applies_when=(only_with("task.target", "image"),),
    )
    mask: bool = option("the label map is a condition", True)
    given: list[str] = option(
        "modalities that are a condition; [all]: those that are not generated", [], items=Items(distinct=True)
    )
    degradation: str = option(
        "the scan itself, degraded in this way, is also a condition; the model learns to restore it",
        "none",
        choices=one_of("none", "noise", "low_resolution"),
    )
    noise_std: float = option(
        "standard deviation of the noise, for intensities from -1 to 1",
        0.25,
        limits=above(0),
        applies_when=(only_with("task.degradation", "noise"),),
    )
    factor: int = option(
        "voxels along each axis that are averaged into one",
        2,
        limits=at_least(2),
        applies_when=(only_with("task.degradation", "low_resolution"),),
    )


@dataclass
class CodecOptions:
    """The change of variables that the diffusion runs in, and the training of `kl`."""

    name: str = option(
        "the codec: the change of variables that the diffusion runs in",
        "haar",
        choices=one_of(table="codecs"),
    )
    levels: int = option(
        "levels of the wavelet transform; each halves the sides",
        1,
        limits=between(1, 3),
        applies_when=(only_with("codec.name", "haar"),),
    )
    channels: list[int] = option(
        "features per level; each level after the first halves the sides",
        [16, 32, 64],
        limits=at_least(1),
        items=Items(fewest=2),
        applies_when=_KL,
    )
    latent_channels: int = option("channels of the latents", 4, limits=at_least(1), applies_when=_KL)
    kl_weight: float = option(
        "weight of the KL divergence from N(0, 1), per latent value, relative to the absolute error",
        1e-4,
        limits=at_least(0),
        applies_when=_KL_TRAINED,
    )
    adversarial_weight: float = option(
        "weight of the loss of a patch discriminator in the second half of the training; 0: none",
        0.0,
        limits=at_least(0),
        applies_when=_KL_TRAINED,
    )
    max_steps: int | None = option(
        "optimisation steps; null: half of trainer.max_steps", None, limits=at_least(1), applies_when=_KL_TRAINED
    )
    batch_size: int | None = option(
        "volumes per step; null: trainer.batch_size", None, limits=at_least(1), applies_when=_KL_TRAINED
    )
    learning_rate: float = option("peak learning rate of AdamW", 1e-3, limits=above(0), applies_when=_KL_TRAINED)
    checkpoint: str | None = path_option(
        "codec.ckpt of an earlier training, used instead of training a codec", applies_when=_KL_MADE
    )
    parameters: list[str] = added_parameters("codec", "levels:2")


@dataclass
class NetworkOptions:
    """The denoising U-Net (MONAI), and how the mask enters it."""

    name: str = option(
        "the network; networks differ in where the mask enters", "unet", choices=one_of(table="networks")
    )
    spatial_dims: int = option("3: whole volumes; 2: each axial slice by itself", 3, choices=one_of(2, 3))
    channels: list[int] = option("features per level", [32, 64, 96], limits=at_least(1), items=Items(fewest=1))
    attention: list[bool] = option(
        "self-attention per level; the middle always has it", [False, False, True], items=Items(fewest=1)
    )
    num_res_blocks: int = option("residual blocks per level", 1, limits=at_least(1))
    num_head_channels: int = option("features per attention head", 32, limits=at_least(1))
    norm_num_groups: int = option("groups of the group normalisation", 16, limits=at_least(1))
    coordinates: bool = option(
        "also feed voxel coordinates to the network, for cohorts whose scans are aligned; data.patch always does", False
    )
    field_of_view: bool = option(
        "also tell the network which voxels lie in the scan; for cohorts whose scans are smaller than the grid",
        False,
        identity=None,
    )
    stem: int | None = option(
        "features of a learned stem for the mask; 0: no stem; null: 32 if the codec's blocks exceed 8 voxels, else 0",
        None,
        limits=at_least(0),
    )
    gradient_checkpointing: bool = option("recompute activations in the backward pass to save memory", False)
    parameters: list[str] = added_parameters("network", "factor:0.5")


@dataclass
class ProcessOptions:
    """The forward process and what the network predicts."""

    noise_schedule: str = option(
        "how signal and noise change over time",
        "rectified_flow",
        choices=one_of(table="schedules"),
    )
    prediction_type: str = option(
        "what the network predicts",
        "flow",
        choices=one_of(table="predictions"),
    )
    num_train_timesteps: int | None = option(
        "number of noise levels of the schedules linear and cosine; null: continuous time", 1000, limits=at_least(1)
    )
    time_shift: float = option(
        "shift of the time steps; values above 1 favour noisy times, as large volumes need",
        1.0,
        limits=above(0),
        applies_when=(only_with("process.noise_schedule", "rectified_flow"),),
    )
    zero_terminal_snr: bool = option(
        "make the last time pure noise, as sampling assumes", False, applies_when=_VARIANCE_PRESERVING
    )
    sigma_min: float = option(
        "smallest noise level, in standard deviations of the (standardised) data",
        0.002,
        limits=above(0),
        applies_when=_EDM,
    )
    sigma_max: float = option("largest noise level, where sampling starts", 80.0, limits=above(0), applies_when=_EDM)
    sigma_data: float = option(
        "edm, schedule and prediction: standard deviation of the data, which the codec scales to 1",
        1.0,
        limits=above(0),
    )
    log_sigma_mean: float = option("mean of the logarithm of the noise level in training", -0.5, applies_when=_EDM)
    log_sigma_std: float = option("standard deviation of that logarithm", 1.2, limits=above(0), applies_when=_EDM)
    loss_weight: str = option(
        "weight of the loss at each time: uniform, or min_snr (noisy times count less)",
        "uniform",
        choices=one_of(table="loss_weights"),
    )
    parameters: list[str] = added_parameters("schedule, prediction or loss weight", "power:2")
