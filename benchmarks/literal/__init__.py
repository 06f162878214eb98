"""Reference implementations of each method's training step and evaluation.

They follow the authors' code: loops over captions, samples and queries, one draw at a time, full
passes where less would do. `itr` is compared with them in numbers and in time. Towers and weights
are those of our models, so that a ratio shows the cost of the method itself. Written by us from the
papers and descriptions of the public code.

A module ``<method>.py`` defines ``Literal`` and its benchmark sizes ``CASE``; it is found by name.
"""
