"""Calls that outlast their caller: each is a job with a state on the disk, and goes on without whoever asked for it."""
