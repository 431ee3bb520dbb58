"""From a person's files to a bundle in one command: `python -m training learn`.

Here: what files hold (`survey`, `recognize`), the choices for them (`recipe`, one file a kind of
model, `plan`), what this machine does in its first seconds (`calibrate`), the configuration that
comes of it (`choose`, `document`). Not here: training, measuring and exporting, which are the same
as for a configuration written by hand. Imports experiments and what is below it.
"""
