"""The pictures of jobs: where each service keeps them, and which job has which. Imports `app.artifacts`.

job_pictures  publishes pictures for jobs that are about to be stored; reads, removes and sweeps them
place         chooses between a folder of files and a table
table         pictures in a table of PostgreSQL, which every host can read
lost          finds images of waiting jobs that are missing, for `framefit doctor`
foresight     tells what will become of a submission before its pictures are written
move          moves the pictures of an older SQLite database into files
"""
