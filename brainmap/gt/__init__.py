"""Ground truth from clicks: candidates, worker abilities, posteriors and heat maps."""
