"""Plans: what a call would do, found out without doing it; kept for half an hour, and carried out once."""
