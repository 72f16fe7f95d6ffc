"""Many batches and requests among hostile peers, and what is left of them: nothing."""
