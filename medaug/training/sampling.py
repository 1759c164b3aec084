"""Makes a `Sampling` from options and checks it, for every stage that samples."""

from __future__ import annotations

from medaug.diffusion.process import Process
from medaug.diffusion.samplers import Sampling
from medaug.errors import UserError
from medaug.options import SamplerOptions
from medaug.tables import parse_parameters


def check_sampling(process: Process, sampler: SamplerOptions, key: str = "sampler") -> Sampling:
    """Make the `Sampling` that the options describe, and check it against the model's process.

    Args:
        process: process of the model.
        sampler: the `sampler` options.
        key: the option that a message names.

    Raises:
        UserError: names the option, what is wrong, and the way out.
    """
    try:
        parameters = parse_parameters(sampler.parameters)
        sampling = Sampling(
            sampler.name, sampler.num_inference_steps, sampler.spacing, sampler.eta, parameters, sampler.overlap
        )
        sampling.check(process)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error
    return sampling
