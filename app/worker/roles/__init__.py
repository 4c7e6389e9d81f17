"""Rooms of the roles of workers: a VAE alone, who else decodes, and handing a denoised job over."""
