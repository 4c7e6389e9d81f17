"""Commands of the operator.

processes  serve, api, worker, profile: the processes of the service
doctor     checks the installation
backup     backup, restore
keys       key new, key hash, key webhook-secret
"""
