"""All that is known of an op: how labels pass, costs, sizes, weights, proof. A file per family."""
