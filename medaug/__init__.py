"""medaug: synthetic image-mask pairs for medical segmentation, and the measurement of whether they help."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    if name == "__version__":  # looked up when asked for: stages start without it
        from importlib.metadata import version

        return version("medaug")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
