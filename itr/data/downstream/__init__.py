"""Readers of the data sets of tasks other than retrieval: questions, statements, expressions."""
