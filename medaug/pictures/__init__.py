"""Pictures of volumes and scores, made from arrays only."""
