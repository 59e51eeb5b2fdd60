"""The hostile catalogue: what attackers try, as data in `cases/`, and one runner that holds every case to the same bar.

After each case: the expected refusal, no effect anywhere, exactly one decision on record, no secret and no raw control
character in anything that went out, no 5xx. `make attacks` runs it and prints the table.
"""
