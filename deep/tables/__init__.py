"""The talk's tables on real data: what is trained, by which protocol, and what was published."""
