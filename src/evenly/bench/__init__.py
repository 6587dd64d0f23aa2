"""``evenly bench``: norms and their peers, timed beside a copy of the tensor, never without their error.

The order is `shapes` (what), `judge` (right or refused), `peers` and `others` (who), `timing` (how long),
`run` (all of it), `results` (a file), `table` and `picture` (what one sees).
"""
