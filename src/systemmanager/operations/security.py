"""What an attacker would look for on a machine."""
