"""Says what files of weights are, which entry runs them, and what they need. Reads headers only; no torch.

inspected  one file: its header and its parts, or why it cannot be used
entry      several files together: the entry of the models file
needs      bytes as stored and as computed, against a card
"""
