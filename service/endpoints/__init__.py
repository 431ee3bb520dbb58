"""Endpoints: a file for each path or foreign protocol: wire model in, engine call, wire model out.

Here: routes and their wire models. Not here: what a model does, and what all requests share (http).
Imports http and the rooms below.
"""
