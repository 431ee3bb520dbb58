"""Data sets for training, built from packages of public registries.

A builder of pairs writes UTF-8 files of `source TAB target` lines, without a header; a source with
several targets has several lines. Labelled texts are lines of `text TAB label`. The same packages
give the same bytes: random choices depend on the SHA-256 of the source. Downloads stay in
`.downloads` next to the output folder.

Here: one file for each data set, and the table of them. Not here: anything that training needs.
Imports nothing else from training.
"""
