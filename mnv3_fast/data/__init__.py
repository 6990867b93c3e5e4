"""Labelled images: folders on disk, the processes that share them, and how often a network is right about them."""
