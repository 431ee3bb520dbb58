"""The modules in PyTorch, named by their papers' words.

Here: recurrent layers, the language model, the encoder-decoder. Not here: losses and loops. Imports
the configuration and data.
"""
