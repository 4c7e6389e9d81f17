"""The networks that diffusers lacks: the UNet with image attention and its image projector."""
