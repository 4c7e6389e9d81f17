"""Downloads models from the Hugging Face hub: only what their pipelines load, resumable, canceled at once.

selection    which files of a repository a pipeline loads
cached       what of a model lies in the cache, and its removal
progress     bytes, rate and time left of a download
planning     asks the hub for files and sizes, and compares them with the disk
transfer     fetches files; goes on where an earlier download broke off
storage      where a model is and how many bytes it has, for cards and tables
known        what the hub last said about a model, for processes that do not ask it
access       asks the hub before a job is queued
download     the download of a model: a child process, so that it can be stopped at any moment
__main__     that child process

Imports entries, components and the hub's client; neither torch nor diffusers.
"""
