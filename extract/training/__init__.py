"""Train a latent reasoner from any base model: data, model with adapters, losses, loop."""
