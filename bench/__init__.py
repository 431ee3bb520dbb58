"""The benchmarks, and the peers that they run beside."""
