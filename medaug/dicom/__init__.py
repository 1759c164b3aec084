"""DICOM in: headers, image series, segmentations and contours, whole trees."""
