"""What `dnc bench` and the programs in `bench/` measure with.

Every figure is taken in turns with those it is compared to, so that whatever else the machine does falls on all of
them alike. The load comes from a process of its own; the server is a real `dnc serve`.
"""
