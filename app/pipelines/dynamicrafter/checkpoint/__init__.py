"""A published DynamiCrafter checkpoint: read and check the file, map its key names, fill the components."""
