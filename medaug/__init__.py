"""medaug: synthetic image-mask pairs for medical segmentation, and the measurement of whether they help.

`__all__` lists the public API, which docs/api.md describes. Each name is imported on first use, so that
`import medaug` stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medaug.api import Model, SyntheticPairs, load
    from medaug.cohort.manifest import Case, Manifest
    from medaug.cohort.schema import LabelSchema
    from medaug.dicom.monai_reader import MedaugReader
    from medaug.diffusion.guidance import Guidance
    from medaug.diffusion.samplers import Sampling
    from medaug.errors import UserError
    from medaug.layouts import read_cohort

__all__ = [
    "Case",
    "Guidance",
    "LabelSchema",
    "Manifest",
    "MedaugReader",
    "Model",
    "Sampling",
    "SyntheticPairs",
    "UserError",
    "load",
    "read_cohort",
]

_MODULES = {
    "medaug.api": ("Model", "SyntheticPairs", "load"),
    "medaug.cohort.manifest": ("Case", "Manifest"),
    "medaug.cohort.schema": ("LabelSchema",),
    "medaug.dicom.monai_reader": ("MedaugReader",),
    "medaug.diffusion.guidance": ("Guidance",),
    "medaug.diffusion.samplers": ("Sampling",),
    "medaug.errors": ("UserError",),
    "medaug.layouts": ("read_cohort",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("medaug")
    if name in _MODULE_OF:
        from importlib import import_module

        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
