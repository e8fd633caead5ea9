"""What a fitted pair is for: posteriors, draws, decoded latents, imputed cells, anomalies."""
