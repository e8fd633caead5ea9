"""What a pair's latents hold: how much, in which of them, and of what."""
