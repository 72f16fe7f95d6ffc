"""The scenarios: each module here is loaded, and registers its own."""
