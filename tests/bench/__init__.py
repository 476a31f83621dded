"""The benchmark suite: `make bench`. Each figure stands beside its limit, measured in the same rounds.

A module here that has WORKLOADS, a list, is a part of it (suite.py). A workload (workload.py) has the number of issue 5's
table, a name, what its limit is, goals, and a function that takes a Bench and yields figures (figures.py). Most are a
`pair`: a limit and ours, each a function of a Bench and a number that returns what runs so many operations; they
are timed in alternation (alternation.py). A new workload is a new file with a WORKLOADS; nothing else lists it.
"""
