"""What developers make of the kernels and the records: the compile report, the roofline, the page. Not installed."""
