"""Questions asked of a pair: how good are the bound, the posterior, the latents, the model?"""
