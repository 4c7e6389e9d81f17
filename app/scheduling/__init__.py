"""What can run and when: admission, plans as clients see them, waiting times, jobs that nobody can run.

Arithmetic on stored numbers, without torch. Imports models, the job table and the library's planning.
"""
