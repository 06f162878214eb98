"""Parts of the evaluation job: its options, tracking, and zero-shot classification."""
