"""Benchmarks, and the peers (other servers and frameworks) that Unroll is compared with."""
