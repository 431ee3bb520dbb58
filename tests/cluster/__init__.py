"""Tests of several nodes. `make test-cluster` runs them; `make test` does not."""
