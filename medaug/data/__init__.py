"""From a manifest to batches in model space, and back to the host's grid."""
