"""Tables as three choices: address (id to slot), store (slot to K numbers), decode (K to T numbers).

Training, serving, files and methods of compression know tables by ``Table`` alone.
"""
