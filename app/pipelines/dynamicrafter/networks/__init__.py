"""The networks that diffusers does not have: the UNet with image attention, and the image projector."""
