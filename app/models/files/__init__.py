"""What a file of weights holds, read from its header: names, dtypes, shapes and bytes of its tensors.

Imports no torch and reads no weights. A format is one file here and one line in `header.py`.
"""
