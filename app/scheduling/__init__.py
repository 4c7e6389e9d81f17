"""Decides what can run and when: admission, plans as clients see them, waiting times, unschedulable jobs.

Arithmetic on stored numbers, without torch. Imports models, the job table and the library's planning.
"""
