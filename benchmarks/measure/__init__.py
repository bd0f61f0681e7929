"""Each module measures one thing and returns it as a value; none knows the record or a report."""
