"""What a log says: lines, traces, templates, and the causes behind them. Pure: text and facts in, a diagnosis out.

No model is asked here and nothing is guessed beyond declared signs; each claim names the lines that it rests on.
"""
