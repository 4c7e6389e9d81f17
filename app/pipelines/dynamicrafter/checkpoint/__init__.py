"""Loads a published DynamiCrafter checkpoint: reads the file, maps its keys, fills the components."""
