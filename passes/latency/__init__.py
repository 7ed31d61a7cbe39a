"""Times of pruned networks on a target: measured op by op, learned by region, and delivered."""
