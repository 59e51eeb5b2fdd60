"""Whether a Request may run: pure rules, each in one file, and the gate that asks them all."""
