"""The schema's revisions, applied by `app.store.JobStore.migrate`."""
