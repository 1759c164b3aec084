"""The package's own entries of every table: name to "module:attribute", imported when an entry is looked up.

This is the one place that names them. The tables (`medaug.tables.Table`), the choices that the options declare,
`--help` and the configuration reference are made from it, so it imports nothing. An installed package adds entries in
the same form, as entry points of group `medaug.<table>` (docs/extending.md).
"""

from __future__ import annotations

OWN: dict[str, dict[str, str]] = {
    "samplers": {
        "dpmpp_2m": "medaug.diffusion.samplers:DPMPP_2M",
        "dpmpp_2m_sde": "medaug.diffusion.samplers:DPMPP_2M_SDE",
        "heun": "medaug.diffusion.samplers:HEUN",
        "ddim": "medaug.diffusion.samplers:DDIM",
        "ddpm": "medaug.diffusion.samplers:DDPM",
    },
    "spacings": {
        "trailing": "medaug.diffusion.spacings:trailing",
        "uniform": "medaug.diffusion.spacings:uniform",
        "karras": "medaug.diffusion.spacings:karras",
    },
    "schedules": {
        "linear": "medaug.diffusion.schedules:Linear",
        "cosine": "medaug.diffusion.schedules:Cosine",
        "rectified_flow": "medaug.diffusion.schedules:RectifiedFlow",
        "edm": "medaug.diffusion.schedules:VarianceExploding",
    },
    "predictions": {
        "epsilon": "medaug.diffusion.predictions:Epsilon",
        "sample": "medaug.diffusion.predictions:Sample",
        "v_prediction": "medaug.diffusion.predictions:Velocity",
        "flow": "medaug.diffusion.predictions:Flow",
        "edm": "medaug.diffusion.predictions:Edm",
    },
    "loss_weights": {
        "uniform": "medaug.diffusion.predictions:Uniform",
        "min_snr": "medaug.diffusion.predictions:MinSnr",
    },
    "codecs": {
        "identity": "medaug.networks.codec_table:IDENTITY",
        "haar": "medaug.networks.codec_table:HAAR",
        "kl": "medaug.networks.codec_table:KL",
    },
    "networks": {
        "unet": "medaug.networks.unet:ConcatUNet",
        "spade": "medaug.networks.spade:SpadeUNet",
        "controlnet": "medaug.networks.controlnet:ControlledUNet",
    },
    "loggers": {
        "tensorboard": "medaug.training.loggers:tensorboard",
        "csv": "medaug.training.loggers:csv",
        "wandb": "medaug.training.loggers:wandb",
        "mlflow": "medaug.training.loggers:mlflow",
    },
    "mask_sources": {
        "real": "medaug.synthesis.real:REAL",
        "deformed": "medaug.synthesis.deformed:DEFORMED",
        "population": "medaug.synthesis.population:POPULATION",
        "composed": "medaug.synthesis.composed:COMPOSED",
        "generated": "medaug.synthesis.generated:GENERATED",
        "mixed": "medaug.synthesis.mixed:MIXED",
    },
    "screening_rules": {
        "integrity": "medaug.screening.integrity:INTEGRITY",
        "faithfulness": "medaug.screening.faithfulness:FAITHFULNESS",
        "intensity": "medaug.screening.intensity:INTENSITY",
        "near_copies": "medaug.screening.near_copies:NEAR_COPIES",
        "duplicates": "medaug.screening.duplicates:DUPLICATES",
    },
    "arms": {
        "real": "medaug.comparison.arms:REAL",
        "real+classical": "medaug.comparison.arms:REAL_CLASSICAL",
        "real+classical+synthetic": "medaug.comparison.arms:REAL_CLASSICAL_SYNTHETIC",
        "real+strong": "medaug.comparison.arms:REAL_STRONG",
        "copy_paste": "medaug.comparison.arms:COPY_PASTE",
        "contrast_random": "medaug.comparison.arms:CONTRAST_RANDOM",
        "warp": "medaug.comparison.arms:WARP",
        "volume_matched": "medaug.comparison.arms:VOLUME_MATCHED",
        "self_training": "medaug.comparison.arms:SELF_TRAINING",
        "synthetic_only": "medaug.comparison.arms:SYNTHETIC_ONLY",
        "real+classical+synthetic_x0.25": "medaug.comparison.arms:SYNTHETIC_QUARTER",
        "real+classical+synthetic_x0.5": "medaug.comparison.arms:SYNTHETIC_HALF",
        "real+classical+synthetic_x1": "medaug.comparison.arms:SYNTHETIC_1",
        "real+classical+synthetic_x2": "medaug.comparison.arms:SYNTHETIC_2",
        "real+classical+synthetic_x4": "medaug.comparison.arms:SYNTHETIC_4",
        "generator_network": "medaug.comparison.arms:GENERATOR_NETWORK",
        "generator_start": "medaug.comparison.arms:GENERATOR_START",
        "self_training+synthetic": "medaug.comparison.arms:SELF_TRAINING_SYNTHETIC",
        "self_training+synthetic+copy_paste": "medaug.comparison.arms:ALL_TOGETHER",
    },
    "augmentations": {
        "classical": "medaug.data.augmentations:make_classical",
        "strong": "medaug.data.augmentations:make_strong",
    },
    "backends": {
        "unet": "medaug.segmentation.backends:UNET",
        "dynunet": "medaug.segmentation.backends:DYNUNET",
        "denoiser": "medaug.segmentation.denoiser:DENOISER",
    },
    "metrics": {
        "dice": "medaug.evaluation.scores:DICE",
        "hd95": "medaug.evaluation.scores:HD95",
        "nsd": "medaug.evaluation.scores:NSD",
        "volume_error": "medaug.evaluation.scores:VOLUME_ERROR",
        "lesion_f1": "medaug.evaluation.scores:LESION_F1",
        "lesion_sensitivity": "medaug.evaluation.scores:LESION_SENSITIVITY",
        "ece": "medaug.evaluation.scores:ECE",
        "brier": "medaug.evaluation.scores:BRIER",
    },
    "measures": {
        "faithfulness": "medaug.auditing.measures:FAITHFULNESS",
        "guidance": "medaug.auditing.measures:GUIDANCE_SWEEP",
        "sharpness": "medaug.auditing.measures:SHARPNESS",
        "frechet_distance": "medaug.auditing.distances:FRECHET",
        "kernel_distance": "medaug.auditing.distances:KERNEL",
        "frechet_radiomics": "medaug.auditing.distances:RADIOMICS",
        "density": "medaug.auditing.distances:DENSITY",
        "coverage": "medaug.auditing.distances:COVERAGE",
        "membership": "medaug.auditing.membership:MEMBERSHIP",
        "mask_volumes": "medaug.auditing.distances:MASK_VOLUMES",
        "mask_shapes": "medaug.auditing.distances:MASK_SHAPES",
        "mask_positions": "medaug.auditing.distances:MASK_POSITIONS",
    },
    "layouts": {
        "msd": "medaug.layouts.msd:MSD",
        "brats2020": "medaug.layouts.brats:BRATS2020",
        "brats2023": "medaug.layouts.brats:BRATS2023",
        "brats2024": "medaug.layouts.brats:BRATS2024",
        "nnunet": "medaug.layouts.nnunet:NNUNET",
        "pairs": "medaug.layouts.pairs:PAIRS",
    },
    "export_formats": {
        "msd": "medaug.exporting.msd:write_msd",
        "nnunet": "medaug.exporting.nnunet:write_nnunet",
        "dicom": "medaug.exporting.dicom:write_dicom",
        "bids": "medaug.exporting.bids:write_bids",
    },
}
