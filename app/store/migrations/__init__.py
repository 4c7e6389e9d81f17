"""The database's schema, revision by revision; run by `app.store.JobStore.migrate`."""
