"""`report.html`: the page of a run, and the data and the drawings that it is made of."""
