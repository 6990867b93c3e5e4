"""The same networks in other inference engines, timed beside ours: ``make bench-rivals``, docs/benchmarks.md.

One file an engine in ``engines/``: how a network is exported for it and how it is run. ``environments`` installs what
it needs, ``cases`` holds the networks and images, ``worker`` is the process in which one engine runs, ``timing`` gives
the workers their turns, ``results`` and ``plots`` write down what came out.
"""
