"""The operators behind the losses: schema, fake kernel, autograd and the choice of backend."""
