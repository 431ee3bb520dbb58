"""HTTP that all endpoints share: everything a request and its answer pass, whatever the path.

Here: the protocol with its limits, the gateway, API keys, bodies, problem documents, server-sent
events, wire models of several endpoints, the OpenAPI document. Not here: paths. Imports tasks and
the rooms below.
"""
