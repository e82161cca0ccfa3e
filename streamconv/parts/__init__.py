"""Parts of a conversion, for several processes or hosts: how a plan is cut, and what of each part is durable."""
