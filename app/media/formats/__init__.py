"""Makes other files of a finished mp4: WebM, GIF, WebP, an archive of PNG files, and single frames.

All of them are read back from the mp4, so they have lost what its coding has. May import the rest of the
room `media`; must not know jobs or HTTP. PyAV is imported when the first file is made.
"""
