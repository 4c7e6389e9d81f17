"""Colours as numbers: primaries, CIE XYZ, and what the tags of a video mean. Knows no picture and no frame.

primaries     the code points of primaries and their chromaticities
xyz           from linear RGB to CIE XYZ, and from one white to another
video_colour  from the coded values of a video to light
"""
