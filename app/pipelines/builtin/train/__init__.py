"""Makes the built-in model: `python -m app.pipelines.builtin.train`. The service never imports it."""
