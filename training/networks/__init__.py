"""The networks: PyTorch modules, with the names that their papers use.

Here: recurrent layers and dropout, the language model, and the encoder, attention and decoder of
the encoder-decoder. Not here: losses and loops. Imports the configuration and data.
"""
