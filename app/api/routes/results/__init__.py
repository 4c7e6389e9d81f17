"""Routes of what a job has made and of the pictures it was made from.

files      images, video, thumbnails and previews as they are stored
frames     single frames of a video, exact ones too
converted  the video in other formats
archive    several videos as one zip
"""
