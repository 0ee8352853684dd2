"""Whole machines that run random guests, and what becomes of the process that holds them.

A guest is a few hundred bytes of ring-0 code from a seed, with descriptor tables, page tables and virtqueues
that it damages as it runs. Whatever it does, its machine must end or be stopped: without a signal, a Python
exception, a hang or memory that grows. `guest` makes guests, `trial` runs one in a process of its own and
gives the verdict, `minimise` takes away what a failure does not need.
"""
