"""A page in the browser that shows what the energy model sees.

``look`` computes, and needs no browser; ``page`` shows.
"""
