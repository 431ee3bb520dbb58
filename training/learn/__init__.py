"""From a person's files to a bundle in one command: `python -m training learn`.

Here: what the files hold (`survey`, `recognize`), the choices for them (`recipe`, one file for each
kind of model, `plan`), the speed of this machine (`calibrate`), and the resulting configuration
(`choose`, `document`). Not here: training, measuring and exporting, which are the same as for a
configuration written by hand. Imports experiments and the rooms below.
"""
