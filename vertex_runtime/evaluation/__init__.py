"""What an exported model is worth on some rows (`--evaluate`), and whether it may be promoted (gate.py).

Rows are read as a run reads them, the model is asked by its served signature, and what it answers is judged by the kind of
problem that labels and answers show: served.py asks, problem.py judges, kept.py keeps, metrics.py, slices.py and paired.py
count, page.py draws, run.py does all of it.
"""
