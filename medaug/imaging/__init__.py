"""Volumes and their files: NIfTI, MetaImage and NRRD; intensity scales, the body mask and bias fields."""
