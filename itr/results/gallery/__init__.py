"""Gallery pages: queries, candidates, charts and heat maps of one evaluation."""
