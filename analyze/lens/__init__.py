"""What a state reads out: the logit lens, the tuned lens, and the product with the unembedding below both."""
