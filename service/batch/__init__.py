"""Processes files of any size line by line in worker processes, in order; a run can be resumed.

Here: which files are read and written (`files`), bytes and chunks of whole lines (`input_stream`,
`chunks`, `compression`), Parquet (`tables`), worker processes (`workers`), the journal that a run
is resumed from (`journal`), and the loop over all of it (`job`). Not here: what is done with a
chunk, which the command line supplies.
"""
