"""Each method's training step and evaluation once more, written as their authors wrote them.

Loops over captions, samples and queries, one draw at a time, whole passes where less would do:
what the fast forms in `itr` are compared with, in numbers and in time. The towers and all weights
are the models' own, so that a ratio shows what the method's own part costs. Written by us from the
papers and from descriptions of the public code.
"""
