"""From a person's files to a bundle in one command: `python -m training learn`.

What belongs here: what files hold (`survey`, `recognize`), the choices made for them (`recipe`),
what this machine does in its first seconds (`calibrate`), the configuration as a document
(`document`), figures in words (`words`). What does not: training, evaluation and export, which
are the same as for a configuration by hand.
"""
