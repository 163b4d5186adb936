"""How fast furcula is, beside what a user could have done instead. Run it with `make bench` or `python -m bench`.

Every row has a reference that does the same work another way. The two are timed in turn, A B A B, so that what the
machine does meanwhile meets both, and what is told is the median of the ratios of neighbours. `rows.py` has the list;
`work.py` the work; the other files have one way of doing it each.
"""
