"""Says in a file how it was made, and reads it again: standard tags of mp4 and WebM, text chunks of PNG.

The tag `title` is the prompt, and `comment` is JSON. May import `app.artifacts`; must not know jobs.
"""
