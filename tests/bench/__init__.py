"""The benchmark suite: `make bench`. Each figure stands beside its limit, measured in the same rounds."""
