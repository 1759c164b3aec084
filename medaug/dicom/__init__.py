"""Reads DICOM: headers, image series, segmentations and contours, whole trees."""
