"""Commands that work on files of latents.

encode  encodes a clip, or a folder of clips, to latents
decode  decodes a latents file to a video
"""
