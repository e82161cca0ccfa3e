"""One job spread over the nodes of a Ray cluster: workers, the work that they are given, and what they report."""
