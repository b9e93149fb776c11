"""The report of a comparison: charts, each with its numbers, and the page that holds them."""
