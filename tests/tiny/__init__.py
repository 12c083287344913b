"""The tiny models, data, priors and trainings of all tests; each kind of model is built once."""
