import torch

# The models are tiny, and several threads would only wait for each other.
torch.set_num_threads(1)
