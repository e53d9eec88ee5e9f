"""Readers of data sets, one module per layout: each makes a ``Listing`` from a manifest and a local copy or the
network."""
