"""What a pair's latents hold: how much information, in which latents, and about what."""
