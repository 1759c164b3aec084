"""A trained model applied to real scans: the request, the inputs, the predictions and their scores."""
