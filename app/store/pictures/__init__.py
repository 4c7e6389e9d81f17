"""The pictures of jobs: where each service keeps them, and which job has which. Imports `app.artifacts`.

job_pictures  publishes pictures for jobs that are about to be stored; reads, removes and sweeps them
place         chooses between a folder of files and a table
table         pictures in a table of PostgreSQL, which every host can read
move          moves the pictures of an older SQLite database into files
"""
