"""One file for each path or foreign protocol: wire model in, engine call, wire model out.

Here: routes and their wire models. Not here: what a model does, or what all requests pass. Imports
http and what is below it.
"""
