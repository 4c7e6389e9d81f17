"""Commands about models, before a job runs.

listed     models: lists them, models rm: removes the files of one
pull       downloads one
plan       computes weight placement and decode plan without loading weights
calibrate  measures time and memory of decodes on this machine
inspect    says what files of weights are, and which entry runs them
convert    converts a published checkpoint file to a diffusers folder
"""
